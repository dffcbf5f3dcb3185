/* libFuzzer's entry: its bytes are a sequence (operation.h). Without forks, which it cannot follow. */
#include "run.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    static _Alignas(fuzz_operation_t) uint8_t copy[1 << 16];
    static bool is_set_up;
    fuzz_sequence_t sequence;
    if (!is_set_up) world_set_up();
    is_set_up = true;
    for (size_t i = 0; i < length && i < sizeof copy; i++) copy[i] = bytes[i];
    if (!fuzz_parse(&sequence, copy, length < sizeof copy ? length : sizeof copy)) return 0;
    sequence.header.forks = 0;
    fuzz_run_sequence(&sequence);
    return 0;
}
