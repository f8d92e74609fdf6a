// GELU(x) = x Phi(x) by Phi(x) = (1 + tanh(u)) / 2 with u = x P(x^2). P has degree 2 and was fitted by least squares, reweighted
// towards the smallest maximum error of x Phi(x): 2.5e-5 (absolute, all x). tanh.approx adds 2^-11 of its value.
DEVICE float gelu_tanh(float x) {
    float s = fminf(x * x, 60.0f);  // P turns back after that
    float u = x * (0.7975091f + s * (0.0370058f - s * 3.515353e-4f));
    float half = 0.5f * x;
    return half * tanh_approx(u) + half;
}
// Of two 16-bit numbers. In float16 all of it is 16-bit arithmetic, two numbers an instruction: the relative L2 error on normal
// inputs of deviation 0.1 to 3 is 2.0e-4 to 3.0e-4, where rounding the exact result alone gives 1.1e-4 to 2.1e-4. bfloat16 has
// too few bits for that and computes in float32.
DEVICE u32 gelu2(u32 x) {
#if BF16
    return pack(gelu_tanh(low(x)), gelu_tanh(high(x)));
#else
    u32 s = min2(mul2(x, x), pack(16.0f, 16.0f));  // tanh is 1 to 16 bits by then
    u32 p = fma2(s, pack(-3.515353e-4f, -3.515353e-4f), pack(0.0370058f, 0.0370058f));
    u32 u = mul2(x, fma2(s, p, pack(0.7975091f, 0.7975091f)));
    u32 half = mul2(x, pack(0.5f, 0.5f));
    return fma2(half, tanh2_approx(u), half);
#endif
}
