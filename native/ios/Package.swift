// swift-tools-version:5.9
// The engine, TVM's runtime and a model's code as a Swift package. Weights are files of the app: the bundle's folder.
import Foundation
import PackageDescription

let native = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("native")

/// The lines of a list of sources, with the folders that its roots stand for.
func sources(_ list: String, _ folders: [String: String]) -> [String] {
  let text = try! String(contentsOf: native.appendingPathComponent(list), encoding: .utf8)
  let lines = text.split(separator: "\n").filter { !$0.hasPrefix("#") }
  return lines.map { line in
    let parts = line.split(separator: "/", maxSplits: 1).map(String.init)
    return folders[parts[0]]! + "/" + parts[1]
  }
}

let runtime = sources(
  "runtime/sources.txt", ["tvm": "wheels/tvm", "tvm_ffi": "wheels/tvm_ffi", "native": "runtime"])
let engine = sources("engine/sources.txt", ["src": "engine/src"]).filter { $0 != "engine/src/host.cc" }

let headers = [
  "engine/include", "engine/src", "wheels/tvm/include", "wheels/tvm_ffi/include",
  "runtime/headers", "runtime/headers/tvm", "runtime/headers/tvm/support",
]

let package = Package(
  name: "Minicpm",
  platforms: [.iOS(.v16)],
  products: [.library(name: "Minicpm", targets: ["Minicpm"])],
  targets: [
    .binaryTarget(name: "MinicpmModel", path: "MinicpmModel.xcframework"),
    .target(
      name: "CMinicpm",
      dependencies: ["MinicpmModel"],
      path: "native",
      sources: runtime + engine + ["ios/src"],
      publicHeadersPath: "ios/include",
      cxxSettings: headers.map { CXXSetting.headerSearchPath($0) } + [
        .define("TVM_FFI_USE_LIBBACKTRACE", to: "0"),
        .define("TVM_FFI_BACKTRACE_ON_SEGFAULT", to: "0"),
        .define("TVM_FFI_CMAKE_LITTLE_ENDIAN", to: "1"),
        .define("MINICPM_TVM", to: "\"0.27.0.post1\""),
      ]),
    .target(name: "Minicpm", dependencies: ["CMinicpm"], path: "Sources/Minicpm"),
  ],
  cxxLanguageStandard: .cxx17
)
