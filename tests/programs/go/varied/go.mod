module varied

go 1.19
