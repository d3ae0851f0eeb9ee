"""File formats that the engines and the exports share. Needs no torch."""
