import CMinicpm
import Foundation

/// What the engine refuses or can't do; the message says why, and what to do.
public struct EngineError: LocalizedError {
  /// One of minicpm_status.
  public let status: UInt32
  public let message: String
  public var errorDescription: String? { message }
}

/// A piece of an answer: whole characters.
public enum Piece: Sendable {
  case thinking(String)
  case answer(String)
  /// Where the option "tokens" is true, in place of text.
  case token(Int32)
}

/// Runs a bundle that minicpm-mlc compiled: minicpm.h for Swift. Options and results are JSON objects, as that header
/// describes them.
///
/// A call computes in the thread that makes it; another thread's waits for it. `cancel` may come from any thread.
public final class Engine: @unchecked Sendable {
  private let engine: OpaquePointer
  private let turn = NSLock()

  /// Opens the bundle in a folder of the app. The model's code is the one that is linked into it.
  public init(bundle: URL, options: [String: Any] = [:]) throws {
    let linked = String(cString: minicpm_linked_model())
    let with = try Self.json(options.merging(["linked": linked]) { asked, _ in asked })
    var opened: OpaquePointer?
    try Self.check(minicpm_open(UInt32(MINICPM_VERSION), bundle.path, with, &opened))
    engine = opened!
  }

  deinit { minicpm_close(engine) }

  /// Answers a conversation: [["role": "user", "content": "Hello"], ...]. `onPiece` returns true when no more is wanted.
  public func chat(
    _ messages: [[String: String]], options: [String: Any] = [:], onPiece: @escaping (Piece) -> Bool
  ) throws {
    try answer(minicpm_chat, Self.json(messages), options, onPiece)
  }

  /// Goes on from a text without a chat template.
  public func generate(
    _ prompt: String, options: [String: Any] = [:], onPiece: @escaping (Piece) -> Bool
  ) throws {
    try answer(minicpm_generate, Self.json(prompt), options, onPiece)
  }

  /// The pieces of an answer, computed on a thread of their own; it ends when nobody takes them any more.
  public func pieces(
    _ messages: [[String: String]], options: [String: Any] = [:]
  ) throws -> AsyncThrowingStream<Piece, Error> {
    let text = try Self.json(messages), with = try Self.json(options)
    return AsyncThrowingStream { stream in
      stream.onTermination = { [weak self] reason in
        if case .cancelled = reason { self?.cancel() }
      }
      Thread.detachNewThread {
        do {
          try self.answer(minicpm_chat, text, with) { piece in
            if case .terminated = stream.yield(piece) { return true }
            return false
          }
          stream.finish()
        } catch {
          stream.finish(throwing: error)
        }
      }
    }
  }

  /// Ends the running call before its next step.
  public func cancel() { minicpm_cancel(engine) }

  /// Writes what is computed, all or nothing, for the option "resume" of `init`.
  public func save(to file: URL) throws {
    try turn.withLock { try Self.check(minicpm_save(engine, file.path)) }
  }

  /// The model's name, its context and what it can do.
  public func info() throws -> [String: Any] { try turn.withLock { try Self.object(minicpm_info(engine)) } }

  /// Figures of the last call.
  public func stats() throws -> [String: Any] { try turn.withLock { try Self.object(minicpm_stats(engine)) } }

  private typealias Call = (
    OpaquePointer?, UnsafePointer<CChar>?, UnsafePointer<CChar>?, minicpm_on_piece?, UnsafeMutableRawPointer?
  ) -> minicpm_status

  private func answer(
    _ call: Call, _ asked: String, _ options: [String: Any], _ onPiece: @escaping (Piece) -> Bool
  ) throws {
    try answer(call, asked, Self.json(options), onPiece)
  }

  private func answer(
    _ call: Call, _ asked: String, _ options: String, _ onPiece: @escaping (Piece) -> Bool
  ) throws {
    let listener = Listener(onPiece)
    let tell: minicpm_on_piece = { user, kind, bytes, size in
      let listener = Unmanaged<Listener>.fromOpaque(user!).takeUnretainedValue()
      return listener.take(kind, UnsafeRawBufferPointer(start: bytes, count: size)) ? 1 : 0
    }
    try turn.withLock {
      try withExtendedLifetime(listener) {
        try Self.check(call(engine, asked, options, tell, Unmanaged.passUnretained(listener).toOpaque()))
      }
    }
  }

  private final class Listener {
    private let onPiece: (Piece) -> Bool

    init(_ onPiece: @escaping (Piece) -> Bool) { self.onPiece = onPiece }

    func take(_ kind: minicpm_piece, _ bytes: UnsafeRawBufferPointer) -> Bool {
      if kind == MINICPM_TOKEN { return onPiece(.token(bytes.loadUnaligned(as: Int32.self))) }
      let text = String(decoding: bytes, as: UTF8.self)
      return onPiece(kind == MINICPM_THINKING ? .thinking(text) : .answer(text))
    }
  }

  private static func check(_ status: minicpm_status) throws {
    if status == MINICPM_OK { return }
    throw EngineError(status: UInt32(status.rawValue), message: String(cString: minicpm_error()))
  }

  private static func json(_ value: Any) throws -> String {
    let data = try JSONSerialization.data(withJSONObject: value, options: .fragmentsAllowed)
    return String(decoding: data, as: UTF8.self)
  }

  /// Takes over a text of minicpm.h.
  private static func object(_ text: UnsafeMutablePointer<CChar>?) throws -> [String: Any] {
    guard let text else { throw EngineError(status: MINICPM_FAILED.rawValue, message: String(cString: minicpm_error())) }
    defer { minicpm_free(text) }
    return try JSONSerialization.jsonObject(with: Data(String(cString: text).utf8)) as? [String: Any] ?? [:]
  }
}
