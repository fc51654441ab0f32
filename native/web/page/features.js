// What of WebAssembly a model's code takes beyond what every browser has: asked with a module of one function each.

// (v128, v128, v128) -> v128: i32x4.relaxed_dot_i8x16_i7x16_add_s
const RELAXED = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 8, 1, 96, 3, 123, 123, 123, 1, 123, 3, 2, 1, 0, 10, 13, 1, 11, 0, 32, 0, 32, 1, 32, 2,
  253, 147, 2, 11,
];
const TRIED = { "relaxed-simd": [RELAXED, "relaxed vectors of WebAssembly"] };

/** Throws where this browser lacks one of these features, as LLVM names them. */
export function checkFeatures(features) {
  for (const name of features) {
    const [module, said] = TRIED[name] ?? [];
    if (!module || WebAssembly.validate(new Uint8Array(module))) continue;
    throw new Error(
      `this browser has no ${said}, which the model was compiled for; take a newer one, or have the model compiled with --device web and without --cpu ${name}`,
    );
  }
}
