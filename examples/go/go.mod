module embedbridge

go 1.22
