import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.atomic.AtomicInteger;
import org.minicpm.Engine;

/** Calls of org.minicpm.Engine for tests/test_engine_jni.py. */
public final class EngineCheck {
  private static final String ASK = "[{\"role\": \"user\", \"content\": \"What is 4827 + 356?\"}]";
  private static final String GREEDY = "{\"temperature\": 0, \"max_tokens\": 48}";

  public static void main(String[] arguments) throws Exception {
    String bundle = arguments[0];
    try (Engine engine = new Engine(bundle, "{\"context\": 512}")) {
      System.out.println("answer: " + answer(engine, ASK, GREEDY));
      emoji(engine);
      listenerThrows(engine);
      cancelled(engine);
      refused(engine);
    }
    for (int i = 0; i < 100; i++) new Engine(bundle, "{\"context\": 64, \"check\": false}").close();
    System.out.println("closed 100 times");
  }

  private static String answer(Engine engine, String messages, String options) {
    ByteArrayOutputStream said = new ByteArrayOutputStream();
    engine.chat(
        messages,
        options,
        (kind, bytes) -> {
          if (kind == Engine.ANSWER) said.write(bytes, 0, bytes.length);
          return false;
        });
    return said.toString(StandardCharsets.UTF_8);
  }

  /** Every piece is whole characters, also where tokens split them. */
  private static void emoji(Engine engine) throws Exception {
    engine.generate(
        "\"\uD83D\uDE00\uD83D\uDE00\uD83D\uDE00\"",
        "{\"temperature\": 2, \"seed\": 1, \"max_tokens\": 200}",
        (kind, bytes) -> {
          try {
            StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes));
          } catch (java.nio.charset.CharacterCodingException error) {
            throw new IllegalStateException(error);
          }
          return false;
        });
    System.out.println("emoji: whole " + engine.tokenize("\uD83D\uDE00"));
  }

  private static void listenerThrows(Engine engine) {
    try {
      engine.chat(
          ASK,
          GREEDY,
          (kind, bytes) -> {
            throw new IllegalStateException("from the listener");
          });
    } catch (IllegalStateException error) {
      System.out.println("thrown: " + error.getMessage());
    }
  }

  private static void cancelled(Engine engine) throws Exception {
    AtomicInteger pieces = new AtomicInteger();
    Thread other = new Thread(engine::cancel);
    engine.generate(
        "\"Pages are\"",
        "{\"temperature\": 0.9, \"max_tokens\": 400}",
        (kind, bytes) -> {
          if (pieces.incrementAndGet() == 3) {
            other.start();
            try {
              other.join();
            } catch (InterruptedException error) {
              throw new IllegalStateException(error);
            }
          }
          return false;
        });
    if (!engine.stats().contains("cancelled")) throw new AssertionError(engine.stats());
    System.out.println("cancelled after " + pieces);
  }

  private static void refused(Engine engine) {
    try {
      engine.chat("[]", "{}", (kind, bytes) -> false);
      throw new AssertionError("no messages are refused");
    } catch (Engine.EngineException error) {
      System.out.println("refused: " + error.getMessage());
    }
  }
}
