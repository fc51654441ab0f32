/* The model that is linked into this app. */
#ifndef MINICPM_MODEL_H_
#define MINICPM_MODEL_H_

#ifdef __cplusplus
extern "C" {
#endif

/* What its symbols begin with: minicpm_open's option "linked". */
const char* minicpm_linked_model(void);

#ifdef __cplusplus
}
#endif

#endif
