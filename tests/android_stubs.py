"""Java sources that stand for what the example app takes of Android: signatures alone, for a Kotlin
compiler.
"""

from __future__ import annotations

from pathlib import Path

CLASSES = {
    "android.os.Bundle": "public class Bundle {}",
    "android.system.ErrnoException": "public class ErrnoException extends Exception {}",
    "android.system.Os": """public class Os {
  public static void setenv(String name, String value, boolean overwrite) throws ErrnoException {}
}""",
    "android.view.View": """public class View {
  public interface OnClickListener { void onClick(View view); }
  public void setOnClickListener(OnClickListener listener) {}
  public void setEnabled(boolean enabled) {}
  public boolean isEnabled() { return true; }
}""",
    "android.text.Editable": """public interface Editable extends CharSequence {
  void clear();
}""",
    "android.widget.TextView": """public class TextView extends android.view.View {
  public CharSequence getText() { return null; }
  public void setText(CharSequence text) {}
  public void append(CharSequence text) {}
}""",
    "android.widget.Button": "public class Button extends TextView {}",
    "android.widget.EditText": """public class EditText extends TextView {
  @Override public android.text.Editable getText() { return null; }
}""",
    "android.widget.ScrollView": """public class ScrollView extends android.view.View {
  public static final int FOCUS_DOWN = 130;
  public boolean fullScroll(int direction) { return true; }
}""",
    "android.app.Activity": """public class Activity {
  protected void onCreate(android.os.Bundle state) {}
  protected void onStop() {}
  protected void onDestroy() {}
  public void setContentView(int layout) {}
  public <T extends android.view.View> T findViewById(int id) { return null; }
  public void runOnUiThread(Runnable action) {}
  public java.io.File getCacheDir() { return null; }
  public java.io.File getFilesDir() { return null; }
  public java.io.File getExternalFilesDir(String type) { return null; }
}""",
    "org.json.JSONException": "public class JSONException extends Exception {}",
    "org.json.JSONObject": """public class JSONObject {
  public JSONObject() {}
  public JSONObject(String text) {}
  public JSONObject put(String name, Object value) { return this; }
  public JSONObject put(String name, int value) { return this; }
  public String getString(String name) { return null; }
  public boolean isNull(String name) { return true; }
}""",
    "org.json.JSONArray": """public class JSONArray {
  public JSONArray() {}
  public JSONArray(String text) {}
  public JSONArray put(Object value) { return this; }
  public Object remove(int index) { return null; }
  public int length() { return 0; }
  public JSONObject getJSONObject(int index) { return null; }
}""",
    "org.minicpm.chat.R": """public class R {
  public static class layout { public static final int chat = 1; }
  public static class id { public static final int log = 1, send = 2, text = 3, scroll = 4; }
}""",
    "org.minicpm.chat.BuildConfig": """public class BuildConfig {
  public static final String BUNDLE = "b", LINKED = "l", SHA256 = "s";
}""",
}


def write(folder: Path) -> list[Path]:
    """The sources, each below its package."""
    paths = []
    for name, body in CLASSES.items():
        package, _, simple = name.rpartition(".")
        path = folder / package.replace(".", "/") / f"{simple}.java"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"package {package};\n\n{body}\n")
        paths.append(path)
    return paths
