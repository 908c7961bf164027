module extension

go 1.19
