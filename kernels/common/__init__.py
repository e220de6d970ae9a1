"""What all operations share: weights, the choice of backend, registration, devices, device functions, configurations.

An operation's folder holds `__init__` (the mathematics), `reference` (plain PyTorch), `op` (the public function, its
checks and the operators), `launch` (tiles and launches), and the kernels in `forward` and `backward`.

Names in the kernels; each file adds its own:

    B, S      images; sequences                        M         rows of one program's tile
    L, T      tokens of a sequence; rows of a tile     CB, NC    columns of one tile, tiles that cover a row
    H, D      heads; channels of a head, or of a row   FB        columns of the other width that pass at a time
    C, CP     channels; the same padded                G         tiles [rows, columns] side by side, one to a warp
    F, FP     hidden columns; the same padded          TP        rows of such a tile, padded
    FAST      inline PTX, which the interpreter cannot run
    x, y, dx  input, output, and the gradient of the loss by either: d and the name
    mean, rstd                                         LayerNorm's mean and 1 / deviation of a row
    partial   one program's share of a sum over programs
"""
