"""Commands of studies: create, rate, agree, export."""
