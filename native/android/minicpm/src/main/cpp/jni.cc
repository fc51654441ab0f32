// org.minicpm.Engine over minicpm.h. Texts travel as bytes: Java's own UTF-8 knows no emoji.
#include <jni.h>

#include <cstring>
#include <string>

#include "minicpm.h"

namespace {

minicpm_engine* EngineOf(jlong handle) { return reinterpret_cast<minicpm_engine*>(handle); }

std::string TextOf(JNIEnv* env, jbyteArray bytes) {
  std::string text(static_cast<size_t>(env->GetArrayLength(bytes)), '\0');
  env->GetByteArrayRegion(bytes, 0, static_cast<jsize>(text.size()), reinterpret_cast<jbyte*>(text.data()));
  return text;
}

// Null where there is no memory, with Java's exception raised.
jbyteArray BytesOf(JNIEnv* env, const char* bytes, size_t size) {
  jbyteArray array = env->NewByteArray(static_cast<jsize>(size));
  if (array) env->SetByteArrayRegion(array, 0, static_cast<jsize>(size), reinterpret_cast<const jbyte*>(bytes));
  return array;
}

void Throw(JNIEnv* env, minicpm_status status) {
  std::string why = minicpm_error();
  jclass kind = env->FindClass("org/minicpm/Engine$EngineException");
  jmethodID make = kind ? env->GetMethodID(kind, "<init>", "(I[B)V") : nullptr;
  jbyteArray text = make ? BytesOf(env, why.data(), why.size()) : nullptr;
  jobject error = text ? env->NewObject(kind, make, static_cast<jint>(status), text) : nullptr;
  if (error) env->Throw(static_cast<jthrowable>(error));
}

struct Listener {
  JNIEnv* env;
  jobject object;
  jmethodID on_piece;
};

int Tell(void* user, minicpm_piece kind, const char* bytes, size_t size) {
  Listener* listener = static_cast<Listener*>(user);
  JNIEnv* env = listener->env;
  jbyteArray piece = BytesOf(env, bytes, size);
  if (!piece) return 1;
  jboolean enough = env->CallBooleanMethod(listener->object, listener->on_piece, static_cast<jint>(kind), piece);
  bool thrown = env->ExceptionCheck();  // it goes on to the caller once the call has ended
  env->DeleteLocalRef(piece);
  return thrown || enough;
}

using Call = decltype(&minicpm_chat);

void Run(JNIEnv* env, Call call, jlong handle, jbyteArray asked, jbyteArray options, jobject object) {
  jclass kind = env->GetObjectClass(object);
  Listener listener{env, object, env->GetMethodID(kind, "onPiece", "(I[B)Z")};
  if (!listener.on_piece) return;
  std::string text = TextOf(env, asked), with = TextOf(env, options);
  minicpm_status status = call(EngineOf(handle), text.c_str(), with.c_str(), Tell, &listener);
  if (status != MINICPM_OK && !env->ExceptionCheck()) Throw(env, status);
}

jbyteArray Returned(JNIEnv* env, char* text) {
  if (!text) {
    Throw(env, MINICPM_FAILED);
    return nullptr;
  }
  jbyteArray bytes = BytesOf(env, text, std::strlen(text));
  minicpm_free(text);
  return bytes;
}

}  // namespace

#define METHOD(type, name) extern "C" JNIEXPORT type JNICALL Java_org_minicpm_Engine_##name

METHOD(jlong, open)(JNIEnv* env, jclass, jbyteArray bundle, jbyteArray options) {
  minicpm_engine* engine = nullptr;
  std::string folder = TextOf(env, bundle), with = TextOf(env, options);
  minicpm_status status = minicpm_open(MINICPM_VERSION, folder.c_str(), with.c_str(), &engine);
  if (status != MINICPM_OK) Throw(env, status);
  return reinterpret_cast<jlong>(engine);
}

METHOD(void, chat)(JNIEnv* env, jclass, jlong handle, jbyteArray messages, jbyteArray options, jobject listener) {
  Run(env, minicpm_chat, handle, messages, options, listener);
}

METHOD(void, generate)(JNIEnv* env, jclass, jlong handle, jbyteArray prompt, jbyteArray options, jobject listener) {
  Run(env, minicpm_generate, handle, prompt, options, listener);
}

METHOD(void, cancel)(JNIEnv*, jclass, jlong handle) { minicpm_cancel(EngineOf(handle)); }

METHOD(jbyteArray, tokenize)(JNIEnv* env, jclass, jlong handle, jbyteArray text) {
  return Returned(env, minicpm_tokenize(EngineOf(handle), TextOf(env, text).c_str()));
}

METHOD(jbyteArray, info)(JNIEnv* env, jclass, jlong handle) { return Returned(env, minicpm_info(EngineOf(handle))); }

METHOD(jbyteArray, stats)(JNIEnv* env, jclass, jlong handle) { return Returned(env, minicpm_stats(EngineOf(handle))); }

METHOD(void, save)(JNIEnv* env, jclass, jlong handle, jbyteArray path) {
  minicpm_status status = minicpm_save(EngineOf(handle), TextOf(env, path).c_str());
  if (status != MINICPM_OK) Throw(env, status);
}

METHOD(void, close)(JNIEnv*, jclass, jlong handle) { minicpm_close(EngineOf(handle)); }
