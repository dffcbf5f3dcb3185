/* hakheap level 0: base_tls - the one thread-local record */
#include "tls.h"

_Thread_local hak_tls_t hak_tls __attribute__((tls_model("initial-exec")));
