package org.minicpm;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * Runs a bundle that minicpm-mlc compiled: minicpm.h for Java and Kotlin. Options, messages and results are JSON, as that
 * header describes them.
 *
 * <p>A call computes in the thread that makes it; another thread's waits for it. {@link #cancel} may come from any thread.
 */
public final class Engine implements AutoCloseable {
  /** Kinds of pieces. */
  public static final int THINKING = 0, ANSWER = 1, TOKEN = 2;

  /** Takes an answer as it comes. */
  public interface Listener {
    /**
     * A piece: whole characters in UTF-8, or of kind TOKEN four bytes in native order.
     *
     * @return true when no more is wanted. What it throws ends the answer and leaves the call.
     */
    boolean onPiece(int kind, byte[] bytes);
  }

  /** What the engine refuses or can't do; the message says why, and what to do. */
  public static final class EngineException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** One of minicpm_status. */
    public final int status;

    EngineException(int status, byte[] message) {
      super(new String(message, UTF_8));
      this.status = status;
    }
  }

  static {
    System.loadLibrary("minicpm_jni");
  }

  private final Object life = new Object(); // guards the handle's end
  private long handle;

  /** Opens the bundle in a folder. */
  public Engine(String bundle, String options) {
    handle = open(bundle.getBytes(UTF_8), options.getBytes(UTF_8));
  }

  /** Answers a conversation. */
  public synchronized void chat(String messages, String options, Listener listener) {
    chat(opened(), messages.getBytes(UTF_8), options.getBytes(UTF_8), listener);
  }

  /** Goes on from a text or a list of token ids. */
  public synchronized void generate(String prompt, String options, Listener listener) {
    generate(opened(), prompt.getBytes(UTF_8), options.getBytes(UTF_8), listener);
  }

  /** Ends the running call before its next step. */
  public void cancel() {
    synchronized (life) {
      if (handle != 0) cancel(handle);
    }
  }

  /** The token ids of a text. */
  public synchronized String tokenize(String text) {
    return new String(tokenize(opened(), text.getBytes(UTF_8)), UTF_8);
  }

  /** The model's name, its context and what it can do. */
  public synchronized String info() {
    return new String(info(opened()), UTF_8);
  }

  /** Figures of the last call. */
  public synchronized String stats() {
    return new String(stats(opened()), UTF_8);
  }

  /** Writes what is computed to a file, all or nothing, for the option "resume". */
  public synchronized void save(String path) {
    save(opened(), path.getBytes(UTF_8));
  }

  /** Frees the memory. Waits for a running call. */
  @Override
  public synchronized void close() {
    long last;
    synchronized (life) {
      last = handle;
      handle = 0;
    }
    if (last != 0) close(last);
  }

  private long opened() {
    if (handle == 0) throw new IllegalStateException("the engine is closed");
    return handle;
  }

  private static native long open(byte[] bundle, byte[] options);

  private static native void chat(long handle, byte[] messages, byte[] options, Listener listener);

  private static native void generate(long handle, byte[] prompt, byte[] options, Listener listener);

  private static native void cancel(long handle);

  private static native byte[] tokenize(long handle, byte[] text);

  private static native byte[] info(long handle);

  private static native byte[] stats(long handle);

  private static native void save(long handle, byte[] path);

  private static native void close(long handle);
}
