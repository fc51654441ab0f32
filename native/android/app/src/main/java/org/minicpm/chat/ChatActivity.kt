package org.minicpm.chat

import android.app.Activity
import android.os.Bundle
import android.system.Os
import android.widget.Button
import android.widget.EditText
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import java.util.concurrent.Executors
import org.json.JSONArray
import org.json.JSONObject
import org.minicpm.Engine

/** A conversation with the model in the app's files, which goes on where it was when the system ends the app. */
class ChatActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor() // computes; the main thread only shows
    private val session by lazy { File(filesDir, "session") } // what the engine computed
    private val said by lazy { File(filesDir, "messages.json") }
    private var messages = JSONArray()
    private var engine: Engine? = null
    @Volatile private var running = false
    private lateinit var log: TextView
    private lateinit var send: Button

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.chat)
        log = findViewById(R.id.log)
        send = findViewById(R.id.send)
        send.setOnClickListener { if (running) engine?.cancel() else ask() }
        worker.execute { open() }
    }

    override fun onStop() {
        engine?.cancel()
        worker.execute { keep() }
        super.onStop()
    }

    private fun keep() {
        try {
            engine?.save(session.path)
            said.writeText(messages.toString())
        } catch (error: Engine.EngineException) {
            show("\n${error.message}\n")
        }
    }

    private fun open() {
        val folder = File(getExternalFilesDir(null), BuildConfig.BUNDLE)
        val options = JSONObject()
            .put("linked", BuildConfig.LINKED)
            .put("sha256", BuildConfig.SHA256)
            .put("context", 4096)
        Os.setenv("XDG_CACHE_HOME", cacheDir.path, true) // what is found out about a GPU, and its compiled kernels
        try {
            engine = resumed(folder, options) ?: Engine(folder.path, options.toString())
            val info = JSONObject(engine!!.info())
            if (!info.isNull("fell_back")) show("${info.getString("fell_back")}; the processor answers\n")
            runOnUiThread { send.isEnabled = true }
        } catch (error: Engine.EngineException) {
            show("${error.message}\n\nadb push ${BuildConfig.BUNDLE} ${folder.parent}/\n")
        }
    }

    private fun resumed(folder: File, options: JSONObject): Engine? {
        if (!session.exists() || !said.exists()) return null
        try {
            val resume = JSONObject(options.toString()).put("resume", session.path)
            val opened = Engine(folder.path, resume.toString())
            messages = JSONArray(said.readText())
            for (i in 0 until messages.length()) show(messages.getJSONObject(i).getString("content") + "\n\n")
            return opened
        } catch (error: Engine.EngineException) { // another bundle's, or damaged: all is computed again
            session.delete()
            return null
        }
    }

    private fun ask() {
        val field = findViewById<EditText>(R.id.text)
        val question = field.text.toString().trim()
        if (question.isBlank()) return
        field.text.clear()
        show("\n> $question\n\n")
        running = true
        send.text = "Stop"
        worker.execute { answer(question) }
    }

    private fun answer(question: String) {
        messages.put(message("user", question))
        val text = StringBuilder()
        try {
            engine!!.chat(messages.toString(), "{}") { kind, bytes ->
                val piece = String(bytes, Charsets.UTF_8)
                if (kind == Engine.ANSWER) text.append(piece)
                show(piece)
                false
            }
            messages.put(message("assistant", text.toString()))
        } catch (error: Engine.EngineException) {
            messages.remove(messages.length() - 1)
            show("\n${error.message}")
        }
        show("\n")
        running = false
        runOnUiThread { send.text = "Send" }
    }

    private fun message(role: String, content: String): JSONObject =
        JSONObject().put("role", role).put("content", content)

    private fun show(text: String) = runOnUiThread {
        log.append(text)
        findViewById<ScrollView>(R.id.scroll).fullScroll(ScrollView.FOCUS_DOWN)
    }

    override fun onDestroy() {
        engine?.cancel()
        worker.execute { engine?.close() }
        worker.shutdown()
        super.onDestroy()
    }
}
