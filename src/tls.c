/* hakheap level 0: base_tls - the one thread-local record */
#include "tls.h"

_Thread_local hak_tls_t hak_tls HAK_TLS_MODEL;
