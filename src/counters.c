/* hakheap level 1: counters - the table's text */
#include "counters.h"

#define ROW(name, group, text) {#name, group, text},
const counter_row_t counter_rows[COUNTER_COUNT] = {COUNTERS(ROW)};
