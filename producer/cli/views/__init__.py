"""What commands show: values in, renderables out."""
