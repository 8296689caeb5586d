"""Ways of making data, one a file. Each gives rows in an order that depends on nothing but its inputs and its seed."""
