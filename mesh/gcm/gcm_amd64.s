// AES-256-GCM on four vectors of four blocks. It follows NIST SP 800-38D; how
// products are reduced, and why powers of H carry a factor x, is in
// "Intel Carry-Less Multiplication Instruction and its Usage for Computing the
// GCM Mode" (Gueron, Kounavis, 2014) and at element in gcm_amd64.go. No branch
// and no address depends on a secret.

#include "textflag.h"

// Registers: Z0-Z3 counters and then key stream, Z4-Z7 text, Z8-Z10 the low,
// middle and high parts of a product, Z11-Z13 scratch, Z14 the hash so far,
// Z15 the next four counters with their bytes reversed, Z16-Z30 the round keys,
// Z31 the reversal of bytes. DX points to tables, DI to text of CX bytes.

// Reverses the bytes of each block.
DATA reverse<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+8(SB)/8, $0x0001020304050607
GLOBL reverse<>(SB), RODATA|NOPTR, $16

// The field's polynomial in the bits' order of GCM, once per block.
DATA poly<>+0(SB)/8, $1
DATA poly<>+8(SB)/8, $0xc200000000000000
DATA poly<>+16(SB)/8, $1
DATA poly<>+24(SB)/8, $0xc200000000000000
DATA poly<>+32(SB)/8, $1
DATA poly<>+40(SB)/8, $0xc200000000000000
DATA poly<>+48(SB)/8, $1
DATA poly<>+56(SB)/8, $0xc200000000000000
GLOBL poly<>(SB), RODATA|NOPTR, $64

// What the first counter of a message adds to that of the tag, block by block.
DATA first<>+0(SB)/8, $1
DATA first<>+8(SB)/8, $0
DATA first<>+16(SB)/8, $2
DATA first<>+24(SB)/8, $0
DATA first<>+32(SB)/8, $3
DATA first<>+40(SB)/8, $0
DATA first<>+48(SB)/8, $4
DATA first<>+56(SB)/8, $0
GLOBL first<>(SB), RODATA|NOPTR, $64

DATA four<>+0(SB)/8, $4
DATA four<>+8(SB)/8, $0
DATA four<>+16(SB)/8, $4
DATA four<>+24(SB)/8, $0
DATA four<>+32(SB)/8, $4
DATA four<>+40(SB)/8, $0
DATA four<>+48(SB)/8, $4
DATA four<>+56(SB)/8, $0
GLOBL four<>(SB), RODATA|NOPTR, $64

// Offsets in tables: power(1) is H.
#define power(n) (240+16*(17-n))(DX)

#define LOADKEYS \
	VBROADCASTI32X4 0(DX), Z16   \
	VBROADCASTI32X4 16(DX), Z17  \
	VBROADCASTI32X4 32(DX), Z18  \
	VBROADCASTI32X4 48(DX), Z19  \
	VBROADCASTI32X4 64(DX), Z20  \
	VBROADCASTI32X4 80(DX), Z21  \
	VBROADCASTI32X4 96(DX), Z22  \
	VBROADCASTI32X4 112(DX), Z23 \
	VBROADCASTI32X4 128(DX), Z24 \
	VBROADCASTI32X4 144(DX), Z25 \
	VBROADCASTI32X4 160(DX), Z26 \
	VBROADCASTI32X4 176(DX), Z27 \
	VBROADCASTI32X4 192(DX), Z28 \
	VBROADCASTI32X4 208(DX), Z29 \
	VBROADCASTI32X4 224(DX), Z30

#define COUNTERS \
	VPSHUFB Z31, Z15, Z0          \
	VPADDD  four<>(SB), Z15, Z15  \
	VPSHUFB Z31, Z15, Z1          \
	VPADDD  four<>(SB), Z15, Z15  \
	VPSHUFB Z31, Z15, Z2          \
	VPADDD  four<>(SB), Z15, Z15  \
	VPSHUFB Z31, Z15, Z3          \
	VPADDD  four<>(SB), Z15, Z15  \
	VPXORQ  Z16, Z0, Z0           \
	VPXORQ  Z16, Z1, Z1           \
	VPXORQ  Z16, Z2, Z2           \
	VPXORQ  Z16, Z3, Z3

// ROUND is a round for the counters.
#define ROUND(K, X) \
	VAESENC K, Z0, Z0 \
	VAESENC K, Z1, Z1 \
	VAESENC K, Z2, Z2 \
	VAESENC K, Z3, Z3

#define LASTROUND \
	VAESENCLAST Z30, Z0, Z0 \
	VAESENCLAST Z30, Z1, Z1 \
	VAESENCLAST Z30, Z2, Z2 \
	VAESENCLAST Z30, Z3, Z3

// TAGROUND is a round for the tag's mask in X13.
#define TAGROUND(K, X) \
	ROUND(K, X)         \
	VAESENC X, X13, X13

// MULTIPLY begins a sum of products, of the blocks in D and powers in memory.
#define MULTIPLY(M, D) \
	VMOVDQU64  M, Z11               \
	VPCLMULQDQ $0x00, Z11, D, Z8    \
	VPCLMULQDQ $0x01, Z11, D, Z9    \
	VPCLMULQDQ $0x10, Z11, D, Z12   \
	VPXORQ     Z12, Z9, Z9          \
	VPCLMULQDQ $0x11, Z11, D, Z10

// MULTIPLYADD adds to it.
#define MULTIPLYADD(M, D) \
	VMOVDQU64  M, Z11               \
	VPCLMULQDQ $0x00, Z11, D, Z12   \
	VPXORQ     Z12, Z8, Z8          \
	VPCLMULQDQ $0x11, Z11, D, Z12   \
	VPXORQ     Z12, Z10, Z10        \
	VPCLMULQDQ $0x01, Z11, D, Z12   \
	VPCLMULQDQ $0x10, Z11, D, Z11   \
	VPTERNLOGD $0x96, Z11, Z12, Z9

// REDUCE brings the sum back into the field, and the four blocks' sums
// together in X14.
#define REDUCE \
	VPCLMULQDQ    $0x10, poly<>(SB), Z8, Z11  \
	VPSHUFD       $0x4e, Z8, Z12              \
	VPTERNLOGD    $0x96, Z11, Z12, Z9         \
	VPCLMULQDQ    $0x10, poly<>(SB), Z9, Z11  \
	VPSHUFD       $0x4e, Z9, Z12              \
	VPTERNLOGD    $0x96, Z11, Z12, Z10        \
	VEXTRACTI64X4 $1, Z10, Y11                \
	VPXORQ        Y11, Y10, Y10               \
	VEXTRACTI128  $1, Y10, X11                \
	VPXOR         X11, X10, X14

// START loads all that a message begins with, and hashes its header.
#define START \
	VBROADCASTI32X4 reverse<>(SB), Z31 \
	LOADKEYS                           \
	VMOVDQU64       (SI), X4           \
	VPSHUFB         X31, X4, X4        \
	MULTIPLY(power(1), Z4)             \
	REDUCE                             \
	VMOVQ           (R8), X15          \
	VPINSRD         $2, 8(R8), X15, X15 \
	MOVL            $0x01000000, AX    \
	VPINSRD         $3, AX, X15, X15   \
	VPSHUFB         X31, X15, X15      \
	VSHUFI64X2      $0, Z15, Z15, Z15  \
	VPADDD          first<>(SB), Z15, Z15

// REVERSE prepares four vectors of ciphertext for the hash.
#define REVERSE \
	VPSHUFB Z31, Z4, Z4 \
	VPSHUFB Z31, Z5, Z5 \
	VPSHUFB Z31, Z6, Z6 \
	VPSHUFB Z31, Z7, Z7

// HASH hashes them.
#define HASH(P0, P1, P2, P3) \
	VPXORQ  Z14, Z4, Z4     \
	MULTIPLY(P0, Z4)        \
	MULTIPLYADD(P1, Z5)     \
	MULTIPLYADD(P2, Z6)     \
	MULTIPLYADD(P3, Z7)

// ROUNDS makes key stream of the counters in Z0-Z3. R is ROUND, or TAGROUND for
// the tag's mask besides.
#define ROUNDS(R) \
	R(Z17, X17) \
	R(Z18, X18) \
	R(Z19, X19) \
	R(Z20, X20) \
	R(Z21, X21) \
	R(Z22, X22) \
	R(Z23, X23) \
	R(Z24, X24) \
	R(Z25, X25) \
	R(Z26, X26) \
	R(Z27, X27) \
	R(Z28, X28) \
	R(Z29, X29) \
	LASTROUND

// HASHROUNDS does ROUNDS, and HASH for what REVERSE prepared, in turns: neither
// waits for the other, and the CPU does not look far enough ahead to find out.
#define HASHROUNDS(R) \
	R(Z17, X17)                \
	MULTIPLY(power(12), Z5)    \
	R(Z18, X18)                \
	R(Z19, X19)                \
	MULTIPLYADD(power(8), Z6)  \
	R(Z20, X20)                \
	R(Z21, X21)                \
	MULTIPLYADD(power(4), Z7)  \
	R(Z22, X22)                \
	R(Z23, X23)                \
	VPXORQ Z14, Z4, Z4         \
	MULTIPLYADD(power(16), Z4) \
	R(Z24, X24)                \
	R(Z25, X25)                \
	R(Z26, X26)                \
	REDUCE                     \
	R(Z27, X27)                \
	R(Z28, X28)                \
	R(Z29, X29)                \
	LASTROUND

// SEALTEXT encrypts 256 bytes with the key stream.
#define SEALTEXT \
	VPXORQ    0(DI), Z0, Z4   \
	VPXORQ    64(DI), Z1, Z5  \
	VPXORQ    128(DI), Z2, Z6 \
	VPXORQ    192(DI), Z3, Z7 \
	VMOVDQU64 Z4, 0(DI)       \
	VMOVDQU64 Z5, 64(DI)      \
	VMOVDQU64 Z6, 128(DI)     \
	VMOVDQU64 Z7, 192(DI)     \
	REVERSE                   \
	ADDQ      $256, DI        \
	SUBQ      $256, CX

// MASKS sets K1 to K4 to the bytes that are left, CX of them, at most 255.
#define MASKS \
	MOVQ    $-1, AX      \
	XORQ    R9, R9       \
	BZHIQ   CX, AX, R10  \
	KMOVQ   R10, K1      \
	MOVQ    CX, R11      \
	SUBQ    $64, R11     \
	CMOVQLT R9, R11      \
	BZHIQ   R11, AX, R10 \
	KMOVQ   R10, K2      \
	MOVQ    CX, R11      \
	SUBQ    $128, R11    \
	CMOVQLT R9, R11      \
	BZHIQ   R11, AX, R10 \
	KMOVQ   R10, K3      \
	MOVQ    CX, R11      \
	SUBQ    $192, R11    \
	CMOVQLT R9, R11      \
	BZHIQ   R11, AX, R10 \
	KMOVQ   R10, K4

// LASTCOUNTERS are those of the rest, and that of the tag in X13.
#define LASTCOUNTERS \
	COUNTERS                        \
	VMOVQ       (R8), X13           \
	VPINSRD     $2, 8(R8), X13, X13 \
	MOVL        $0x01000000, AX     \
	VPINSRD     $3, AX, X13, X13    \
	VPXORQ      X16, X13, X13

// LOADREST loads the CX bytes that are left, and zeros behind them.
#define LOADREST \
	VMOVDQU8.Z 0(DI), K1, Z4   \
	VMOVDQU8.Z 64(DI), K2, Z5  \
	VMOVDQU8.Z 128(DI), K3, Z6 \
	VMOVDQU8.Z 192(DI), K4, Z7

#define STOREREST(A, B, C, D) \
	VMOVDQU8 A, K1, 0(DI)   \
	VMOVDQU8 B, K2, 64(DI)  \
	VMOVDQU8 C, K3, 128(DI) \
	VMOVDQU8 D, K4, 192(DI)

// FINISH hashes the rest, zeros behind it, and the lengths, and stores the tag.
// The last block of the rest has the power 2, the lengths have the power 1.
#define FINISH \
	MOVQ    CX, AX                                  \
	ADDQ    $15, AX                                 \
	ANDQ    $~15, AX                                \
	LEAQ    power(1), R10                           \
	SUBQ    AX, R10                                 \
	REVERSE                                         \
	HASH(0(R10), 64(R10), 128(R10), 192(R10))       \
	SHLQ    $3, BX                                  \
	VMOVQ   BX, X4                                  \
	MOVL    $128, AX                                \
	VPINSRQ $1, AX, X4, X4                          \
	MULTIPLYADD(power(1), Z4)                       \
	REDUCE                                          \
	VPSHUFB X31, X14, X14                           \
	VPXOR   X13, X14, X14                           \
	VMOVDQU X14, (R12)                              \
	VZEROUPPER

#define ARGUMENTS \
	MOVQ t+0(FP), DX       \
	MOVQ nonce+8(FP), R8   \
	MOVQ header+16(FP), SI \
	MOVQ text+24(FP), DI   \
	MOVQ n+32(FP), CX      \
	MOVQ tag+40(FP), R12   \
	MOVQ CX, BX

// func seal(t *tables, nonce, header, text *byte, n int, tag *[16]byte)
TEXT ·seal(SB), NOSPLIT, $0-48
	ARGUMENTS
	START
	CMPQ CX, $256
	JLT  rest
	COUNTERS
	ROUNDS(ROUND)
	SEALTEXT
	CMPQ CX, $256
	JLT  last

whole:
	COUNTERS
	HASHROUNDS(ROUND)
	SEALTEXT
	CMPQ CX, $256
	JGE  whole

last:
	MASKS
	LASTCOUNTERS
	HASHROUNDS(TAGROUND)
	VAESENCLAST X30, X13, X13
	JMP  crypt

rest:
	MASKS
	LASTCOUNTERS
	ROUNDS(TAGROUND)
	VAESENCLAST X30, X13, X13

crypt:
	LOADREST
	VPXORQ     Z0, Z4, Z4
	VPXORQ     Z1, Z5, Z5
	VPXORQ     Z2, Z6, Z6
	VPXORQ     Z3, Z7, Z7
	STOREREST(Z4, Z5, Z6, Z7)
	VMOVDQU8.Z Z4, K1, Z4
	VMOVDQU8.Z Z5, K2, Z5
	VMOVDQU8.Z Z6, K3, Z6
	VMOVDQU8.Z Z7, K4, Z7
	FINISH
	RET

// func open(t *tables, nonce, header, text *byte, n int, tag *[16]byte)
TEXT ·open(SB), NOSPLIT, $0-48
	ARGUMENTS
	START
	CMPQ CX, $256
	JLT  rest

whole:
	COUNTERS
	VMOVDQU64 0(DI), Z4
	VMOVDQU64 64(DI), Z5
	VMOVDQU64 128(DI), Z6
	VMOVDQU64 192(DI), Z7
	REVERSE
	HASHROUNDS(ROUND)
	VPXORQ    0(DI), Z0, Z0
	VPXORQ    64(DI), Z1, Z1
	VPXORQ    128(DI), Z2, Z2
	VPXORQ    192(DI), Z3, Z3
	VMOVDQU64 Z0, 0(DI)
	VMOVDQU64 Z1, 64(DI)
	VMOVDQU64 Z2, 128(DI)
	VMOVDQU64 Z3, 192(DI)
	ADDQ      $256, DI
	SUBQ      $256, CX
	CMPQ      CX, $256
	JGE       whole

rest:
	MASKS
	LASTCOUNTERS
	ROUNDS(TAGROUND)
	VAESENCLAST X30, X13, X13
	LOADREST
	VPXORQ    Z4, Z0, Z0
	VPXORQ    Z5, Z1, Z1
	VPXORQ    Z6, Z2, Z2
	VPXORQ    Z7, Z3, Z3
	STOREREST(Z0, Z1, Z2, Z3)
	FINISH
	RET

// func subWord(w uint32) uint32
TEXT ·subWord(SB), NOSPLIT, $0-12
	MOVL            w+0(FP), AX
	VMOVD           AX, X0
	VPSHUFD         $0, X0, X0
	AESKEYGENASSIST $0, X0, X0
	MOVD            X0, AX
	MOVL            AX, ret+8(FP)
	RET
