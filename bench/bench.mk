# The benchmark programs: one build/bench/<workload>-<adapter> for each workload and allocator, all against shared
# libraries.
#
#   make -f bench/bench.mk WORKLOAD       build those of larson (the default) or another workload whose allocator is
#                                         installed (from the project's root)
#   make -f bench/bench.mk peers          print the adapters of the peers that are installed
#   make -f bench/bench.mk adapters       print all adapters that can be built, with those of single workloads
#   make -f bench/bench.mk compiler       print the compiler and its flags
#   make -f bench/bench.mk simulated      build build/bench/simulated, which is hakheap's alone
#   make -f bench/bench.mk statscost      build build/bench/statscost, likewise
#   make -f bench/bench.mk limits         build build/bench/limits, likewise, and what bench/limits.sh compares
#   make -f bench/bench.mk build/bench/larson-system
#
# build/libhakheap.so comes from the main Makefile; larson.sh makes it first. Compiler and flags are chosen as there.

BENCH := build/bench
WORKLOADS := larson battle handoff sharing latency mixed longrun lifecycle flushcost sessions queries waves bulk
ifeq ($(origin CC),default)
CC := gcc
endif
CFLAGS ?= -O2 -g
BENCH_WARNINGS := -Wall -Wextra -Wundef -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror
BENCH_COMPILE := $(CC) -std=gnu11 $(CFLAGS) $(BENCH_WARNINGS) -pthread -Iinclude

# mimalloc 3 has the header's and the library's name of version 2, which may be installed beside it, so pkg-config tells. Its
# heaps are for all threads since 3.3. Where cmake installs it, the header is in a folder that pkg-config does not name.
MIMALLOC3 := $(shell pkg-config --atleast-version=3.3 mimalloc 2>/dev/null && echo mimalloc3)
ifneq ($(MIMALLOC3),)
mimalloc3_variable = $(shell pkg-config --variable=$1 mimalloc)
header_mimalloc3 := mimalloc.h
flags_mimalloc3 := -I$(call mimalloc3_variable,includedir)/mimalloc-$(shell pkg-config --modversion mimalloc) \
    $(shell pkg-config --cflags mimalloc)
libs_mimalloc3 := -Wl,--no-as-needed $(shell pkg-config --libs mimalloc) -Wl,-rpath,$(call mimalloc3_variable,libdir)
endif

# Peers: a header that only the peer has, and its library. --no-as-needed keeps a library whose malloc is all we use.
PEERS := mimalloc jemalloc jemalloc_arena tcmalloc $(MIMALLOC3)
header_mimalloc := mimalloc.h
header_jemalloc := jemalloc/jemalloc.h
header_jemalloc_arena := $(header_jemalloc)
header_tcmalloc := gperftools/malloc_extension_c.h
header_mimalloc_heap := $(header_mimalloc)
libs_mimalloc := -Wl,--no-as-needed -lmimalloc
libs_mimalloc_heap := $(libs_mimalloc)
libs_jemalloc := -Wl,--no-as-needed -ljemalloc
libs_jemalloc_arena := $(libs_jemalloc)
libs_tcmalloc := -Wl,--no-as-needed -ltcmalloc_minimal
# Pools of the Apache Portable Runtime. Its flags define what the programs define themselves, so only its folder is taken.
header_apr := apr_pools.h
flags_apr := $(patsubst -I%,-isystem %,$(shell pkg-config --cflags-only-I apr-1 2>/dev/null))
libs_apr := -lapr-1
# Peers of single workloads: mimalloc's heaps are for one thread each, and a block of a pool cannot be freed.
peers_lifecycle := mimalloc_heap
peers_flushcost := mimalloc_heap
peers_sessions := mimalloc_heap apr
peers_queries := mimalloc_heap apr
peers_waves := mimalloc_heap
peers_bulk := mimalloc_heap
libs_hakheap := build/libhakheap.so -Wl,-rpath,'$$ORIGIN/..'
libs_hakheap_limited := $(libs_hakheap)

# $(call installed,peer): "peer" where a program that includes its header links with its library, else nothing.
installed = $(shell echo 'int main(void) { return 0; }' | \
    $(CC) $(flags_$1) -x c -include $(header_$1) - -o /dev/null $(libs_$1) 2>/dev/null && echo $1)
PEERS_INSTALLED = $(foreach peer,$(PEERS),$(call installed,$(peer)))

.DELETE_ON_ERROR:
.PHONY: bench-programs peers adapters compiler bench-always simulated statscost limits $(WORKLOADS)
bench-programs: larson

# The programs of one workload, for every allocator that is installed.
programs = $(patsubst %,$(BENCH)/$1-%,$(PEERS_INSTALLED) $(foreach peer,$(peers_$1),$(call installed,$(peer))))
$(WORKLOADS): %: $(BENCH)/%-hakheap $(BENCH)/%-system
	@$(MAKE) --no-print-directory -f bench/bench.mk $(call programs,$*)

peers:
	@echo $(PEERS_INSTALLED)

adapters:
	@echo hakheap system $(foreach peer,$(sort $(PEERS) $(foreach w,$(WORKLOADS),$(peers_$w))),$(call installed,$(peer)))

compiler:
	@echo "$$($(CC) --version | head -n 1) $(CFLAGS)"

# Changes only when the compile command does, so that another compiler or other flags rebuild everything.
$(BENCH)/command: bench-always
	@mkdir -p $(@D)
	@echo '$(BENCH_COMPILE)' | cmp -s - $@ || echo '$(BENCH_COMPILE)' > $@

# $(call program,workload): the rule of its programs.
define program
$(BENCH)/$1-%: bench/$1.c bench/adapter_%.h $(BENCH)/command
	@mkdir -p $$(@D)
	$$(BENCH_COMPILE) $$(flags_$$*) -MMD -MP -MF $$@.d -MT $$@ -DADAPTER='"adapter_$$*.h"' bench/$1.c -o $$@ \
	    $$(libs_$$*) -ldl

$(BENCH)/$1-hakheap $(BENCH)/$1-hakheap_limited: build/libhakheap.so
endef
$(foreach workload,$(WORKLOADS),$(eval $(call program,$(workload))))

-include $(wildcard $(BENCH)/*.d)

simulated: $(BENCH)/simulated

# hakheap's private symbols are in no library: it is compiled with its sources.
$(BENCH)/simulated: bench/simulated.c $(wildcard bench/*.h src/*.[ch] include/*.h) $(BENCH)/command
	@mkdir -p $(@D)
	$(BENCH_COMPILE) -Isrc bench/simulated.c $(wildcard src/*.c) -o $@ -ldl

statscost: $(BENCH)/statscost
limits: $(BENCH)/limits $(BENCH)/larson-hakheap $(BENCH)/larson-hakheap_limited

$(BENCH)/statscost $(BENCH)/limits: $(BENCH)/%: bench/%.c build/libhakheap.so $(BENCH)/command
	@mkdir -p $(@D)
	$(BENCH_COMPILE) -MMD -MP -MF $@.d -MT $@ $< -o $@ $(libs_hakheap) -ldl
