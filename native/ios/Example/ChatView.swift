// A screen that chats with a model. In an app: ChatView(bundle: Bundle.main.url(forResource: "NAME", withExtension: nil)!)
import Minicpm
import SwiftUI

@MainActor
final class Chat: ObservableObject {
  struct Message: Identifiable {
    let id = UUID()
    let role: String
    var content: String
  }

  @Published var messages: [Message] = []
  @Published var error: String?
  @Published private(set) var answering: Task<Void, Never>?
  private var engine: Engine?

  /// Opens the bundle, which reads and checks all of it, off the main thread.
  func open(_ bundle: URL) async {
    do {
      engine = try await Task.detached { try Engine(bundle: bundle, options: ["context": 4096]) }.value
    } catch {
      self.error = error.localizedDescription
    }
  }

  var isReady: Bool { engine != nil }

  func ask(_ question: String) {
    guard let engine else { return }
    messages.append(Message(role: "user", content: question))
    let asked = messages.map { ["role": $0.role, "content": $0.content] }
    messages.append(Message(role: "assistant", content: ""))
    answering = Task {
      do {
        for try await piece in try engine.pieces(asked) {
          if case .answer(let text) = piece { messages[messages.count - 1].content += text }
        }
      } catch {
        self.error = error.localizedDescription
      }
      answering = nil
    }
  }

  func stop() { engine?.cancel() }
}

struct ChatView: View {
  let bundle: URL
  @StateObject private var chat = Chat()
  @State private var question = ""

  var body: some View {
    VStack {
      ScrollView {
        LazyVStack(alignment: .leading, spacing: 12) {
          ForEach(chat.messages) { message in
            Text(message.content)
              .foregroundStyle(message.role == "user" ? .secondary : .primary)
              .textSelection(.enabled)
          }
        }
        .padding()
      }
      if let error = chat.error { Text(error).foregroundStyle(.red).padding(.horizontal) }
      HStack {
        TextField("Message", text: $question, axis: .vertical).onSubmit(send)
        if chat.answering == nil {
          Button("Send", action: send).disabled(!chat.isReady || question.isEmpty)
        } else {
          Button("Stop", action: chat.stop)
        }
      }
      .padding()
    }
    .task { await chat.open(bundle) }
  }

  private func send() {
    guard !question.isEmpty, chat.answering == nil else { return }
    chat.ask(question)
    question = ""
  }
}
