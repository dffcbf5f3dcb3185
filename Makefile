# hakheap. `make` needs gcc and make, and gives build/libhakheap.a and build/libhakheap.so; `make help` lists the rest.
#
# Every combination of compiler and switches has its own directory, build/<variant>/, and in it a stamp with the whole
# command line: objects of different flags never meet. build/libhakheap.* and build/examples/* are copies of the
# variant that was asked for.

ifeq ($(origin CC),default)
CC := gcc
endif
ifeq ($(origin CXX),default)
CXX := $(subst clang,clang++,$(subst gcc,g++,$(CC)))
endif
AR       ?= ar
OBJCOPY  ?= objcopy
CFLAGS   ?= -O2 -g
COUNTERS ?= 0
DEBUG    ?= 0
# address, undefined or thread
SANITIZE ?=
# Where an installation goes. Debian's LIBDIR: /usr/lib/$(gcc -print-multiarch).
PREFIX     ?= /usr/local
INCLUDEDIR ?= $(PREFIX)/include
LIBDIR     ?= $(PREFIX)/lib
MANDIR     ?= $(PREFIX)/share/man
DOCDIR     ?= $(PREFIX)/share/doc/hakheap

empty :=
space := $(empty) $(empty)

# ---- Flags ----

WARNINGS := -Wall -Wextra -Wundef -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror
SANITIZE_FLAGS := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer)
# musl-gcc of Debian sees musl's headers only. The kernel's are the system's, and come last.
KERNEL_HEADERS := $(if $(findstring musl,$(CC)),-idirafter /usr/include -idirafter /usr/include/x86_64-linux-gnu)
COMMON  := -std=gnu11 -pthread $(WARNINGS) -DHAK_COUNTERS=$(COUNTERS) -DHAK_DEBUG=$(DEBUG) -Iinclude \
           $(KERNEL_HEADERS) $(SANITIZE_FLAGS) $(CPPFLAGS) $(CFLAGS)
CXX_COMMON = $(patsubst -std=gnu11,-std=gnu++17,$(filter-out -Wstrict-prototypes -Wmissing-prototypes,$(COMMON)))
LIBRARY := $(COMMON) -fPIC -fvisibility=hidden
# The version of the header. Its first number is the version of the interface: the soname.
version := $(shell awk '/define HAK_VERSION_(MAJOR|MINOR|PATCH) / { v = v "." $$3 } END { print substr(v, 2) }' include/hakheap.h)
SONAME  := libhakheap.so.$(firstword $(subst ., ,$(version)))
# nodelete: code that holds live rseq sections must stay mapped for as long as the process runs.
SHARED  := -shared -Wl,-soname,$(SONAME) -Wl,--version-script=packaging/hakheap.map -Wl,-z,nodelete \
           $(if $(SANITIZE),,-Wl,-z,defs)
# With -flto the one object of the archive is made machine code: nothing can be hidden in the compiler's own form of it.
# gcc has an option for that, clang's linker does it by itself.
LTO     := $(findstring -flto,$(CC) $(COMMON) $(LDFLAGS))
CLANG   := $(if $(LTO),$(findstring clang,$(shell $(CC) --version)))
LINKER  := $(if $(CLANG),-fuse-ld=lld)
ONE     := -r -nostdlib $(if $(LTO),$(or $(LINKER),-flinker-output=nolto-rel))

# ---- Other libraries: what adapters and programs need ----

# Each adapter include/hakheap/<name>.h has a test, tests/adapters/test_<name>.c or .cpp. A test, and a program of
# examples/ that uses other libraries, is built where pkg-config knows all packages of its NEEDS_<name>.
NEEDS_lua     := lua5.4
NEEDS_sqlite  := sqlite3
NEEDS_nghttp2 := libnghttp2
NEEDS_zlib    := zlib
NEEDS_zstd    := libzstd
NEEDS_libuv   := libuv
NEEDS_curl    := libcurl
NEEDS_xml2    := libxml-2.0

# Programs of examples/, .c or .cpp; one whose name ends in _preload is a shared object for LD_PRELOAD.
PROGRAMS := lua_tenants sqlite_preload sqlite_tenants nghttp2_sessions pmr_queries

NEEDS_lua_tenants      := lua5.4
NEEDS_sqlite_preload   := sqlite3
NEEDS_sqlite_tenants   := sqlite3
NEEDS_nghttp2_sessions := libnghttp2

# Those of a list of names whose packages, and whose sources, are there; and why one is not.
ADAPTERS := $(sort $(patsubst test_%,%,$(basename $(notdir $(wildcard tests/adapters/test_*.c tests/adapters/test_*.cpp)))))
found     = $(shell $(foreach each,$(1),pkg-config --exists pkg-config $(NEEDS_$(each)) 2> /dev/null && echo $(each);))
lacks     = SKIPPED: $(1): pkg-config is missing, or does not know all of: $(NEEDS_$(patsubst tests/adapters/test_%,%,$(1)))
READY    := $(call found,$(ADAPTERS))
RUNNABLE := $(call found,$(PROGRAMS))
# What a compiler and a linker are told of them. Warnings of their headers are not ours.
cflags_of = $$(pkg-config --cflags $(NEEDS_$(1)) pkg-config | sed 's/-I/-isystem /g')
libs_of   = $$(pkg-config --libs pkg-config $(foreach each,$(1),$(NEEDS_$(each))))

# ---- Variants ----

# $(call variant,DEBUG,COUNTERS,SANITIZE): the directory of one combination, for instance build/clang-debug-counters.
compiler := $(subst /,_,$(subst $(space),_,$(strip $(CC))))
variant = build/$(subst $(space),-,$(strip $(filter-out gcc,$(compiler)) $(or $(strip $(patsubst 1,debug,$(filter 1,$(1))) \
    $(patsubst 1,counters,$(filter 1,$(2))) $(3)),release)))
V := $(call variant,$(DEBUG),$(COUNTERS),$(SANITIZE))

OBJECTS  := $(patsubst src/%.c,$(V)/obj/%.o,$(wildcard src/*.c))
EXAMPLES := $(filter-out $(PROGRAMS:%=examples/%),$(patsubst examples/%.c,examples/%,$(wildcard examples/*.c)))
STRESS   := $(patsubst tests/%.c,%,$(wildcard tests/stress_*.c))
# tests/support_*.c: helpers, linked into the Criterion binary and into each stress program.
SUPPORT  := $(patsubst tests/%.c,$(V)/obj/tests/%.o,$(wildcard tests/support_*.c))
TESTS    := $(patsubst tests/%.c,$(V)/obj/tests/%.o,$(wildcard tests/test_*.c))
# tests/fuzz/: random operations against a model, see docs/reliability.md.
FUZZ     := $(patsubst tests/%.c,$(V)/obj/tests/%.o,$(filter-out %/target.c,$(wildcard tests/fuzz/*.c)))
ADAPTER_TESTS := $(READY:%=$(V)/obj/tests/adapters/test_%.o)
BUILT_PROGRAMS := $(foreach each,$(RUNNABLE),$(V)/examples/$(each)$(if $(filter %_preload,$(each)),.so))
FORMATTED = $(wildcard include/*.h include/hakheap/*.h include/hakheap/*.hpp src/*.[ch] tests/*.[ch] tests/fuzz/*.[ch] \
    tests/adapters/*.c tests/adapters/*.cpp examples/*.[ch] examples/*.cpp bench/*.[ch])

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: programs print-programs integration \
        all check check-asan check-ubsan check-tsan check-valgrind check-optimised examples docs docs-look bench bench-guard \
        fuzz fuzz-libfuzzer fuzz-minimise soak check-fuzz workloads mutants planted models format format-check clean \
        suites sections install uninstall help tests stress FORCE

all: build/libhakheap.a build/libhakheap.so build/$(SONAME)

# ---- The library ----

# Rewritten only where the flags differ, so that nothing is rebuilt without need.
$(V)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(CC) $(LIBRARY) $(SHARED) $(ONE) $(LDFLAGS)' | cmp -s - $@ || \
	    printf '%s\n' '$(CC) $(LIBRARY) $(SHARED) $(ONE) $(LDFLAGS)' > $@

$(V)/obj/%.o: src/%.c $(V)/flags
	@mkdir -p $(@D)
	$(CC) $(LIBRARY) -MMD -MP -c $< -o $@

# The list of files is part of what is linked: a source that is gone must be gone from the archive and the tests too.
$(V)/objects: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(OBJECTS) $(TESTS) $(SUPPORT) $(FUZZ) $(ADAPTER_TESTS)' | cmp -s - $@ || \
	    printf '%s\n' '$(OBJECTS) $(TESTS) $(SUPPORT) $(FUZZ) $(ADAPTER_TESTS)' > $@

# One object, in which what is hidden is local: a program may have names of its own like those inside the library.
$(V)/libhakheap.a: $(OBJECTS) $(V)/objects
	rm -f $@
	$(CC) $(CFLAGS) -fPIC $(ONE) $(OBJECTS) -o $(V)/hakheap.o
	$(OBJCOPY) --localize-hidden $(V)/hakheap.o
	$(AR) rcs $@ $(V)/hakheap.o

$(V)/libhakheap.so: $(OBJECTS) $(V)/objects packaging/hakheap.map
	$(CC) $(LIBRARY) $(SHARED) $(LINKER) $(LDFLAGS) $(OBJECTS) -o $@

build/libhakheap.a build/libhakheap.so $(EXAMPLES:%=build/%): build/%: $(V)/% FORCE
	@mkdir -p $(@D)
	@cmp -s $< $@ || cp $< $@

# The name that programs linked with build/libhakheap.so look for.
build/$(SONAME): build/libhakheap.so
	ln -sf libhakheap.so $@

# ---- Examples: what a user's own build looks like, the public header and the library ----

examples: $(EXAMPLES:%=build/%)

$(V)/examples/%: examples/%.c $(V)/libhakheap.a $(V)/flags
	@mkdir -p $(@D)
	$(CC) $(COMMON) -MMD -MP -MF $@.d -MT $@ $< $(V)/libhakheap.a $(LINKER) $(LDFLAGS) -o $@

# ---- Programs that use other libraries: `make integration` runs them, see scripts/integration.sh ----

programs: $(BUILT_PROGRAMS)
	@$(foreach each,$(filter-out $(RUNNABLE),$(PROGRAMS)),echo '$(call lacks,$(each))';) :

# Those that the table names.
print-programs:
	@echo $(PROGRAMS)

integration:
	scripts/integration.sh

# Only where the table names the program: the rule of plain examples has the same target.
$(patsubst %,$(V)/examples/%,$(RUNNABLE)): $(V)/examples/%: $(V)/obj/examples/%.o $(V)/libhakheap.a
	@mkdir -p $(@D)
	$(if $(wildcard examples/$*.cpp),$(CXX) $(CXX_COMMON),$(CC) $(COMMON)) $< $(V)/libhakheap.a $(LINKER) $(LDFLAGS) \
	    $(call libs_of,$*) -o $@

# What is preloaded into a program takes the libraries that the program has.
$(V)/examples/%_preload.so: $(V)/obj/examples/%_preload.o $(V)/libhakheap.a
	@mkdir -p $(@D)
	$(CC) $(LIBRARY) -shared -Wl,-z,nodelete $< $(V)/libhakheap.a $(LINKER) $(LDFLAGS) -o $@

$(V)/obj/examples/%.o: examples/%.c $(V)/flags
	@mkdir -p $(@D)
	$(CC) $(LIBRARY) $(call cflags_of,$*) -MMD -MP -c $< -o $@

$(V)/obj/examples/%.o: examples/%.cpp $(V)/flags
	@mkdir -p $(@D)
	$(CXX) $(CXX_COMMON) $(call cflags_of,$*) -MMD -MP -c $< -o $@

# ---- Tests ----

tests: $(V)/tests/run $(V)/tests/fuzz stress $(V)/libhakheap.a $(V)/libhakheap.so $(EXAMPLES:%=$(V)/%) \
       $(if $(READY),$(V)/tests/adapters) $(V)/tests/adapters.skipped programs
stress: $(STRESS:%=$(V)/tests/%)
suites: $(V)/tests/run

# Where the tests find the tree and their programs, and the list that test_stress.c makes its tests of.
$(V)/tests/test_build.h: FORCE
	@mkdir -p $(@D)
	@{ echo '#define HAK_TEST_ROOT "$(CURDIR)"'; \
	   echo '#define HAK_TEST_BUILD "$(CURDIR)/$(V)"'; \
	   echo '#define HAK_TEST_STRESS(X) $(patsubst stress_%,X(%),$(STRESS))'; } > $@.next
	@cmp -s $@.next $@ && rm $@.next || mv $@.next $@

# Criterion's macros narrow in the caller's source, where their own header cannot excuse them.
# Tests are compiled with less effort than what they test.
$(TESTS): CRITERION := -Wno-conversion $(if $(filter -O2,$(CFLAGS)),-O1 -Wno-unknown-warning-option -Wno-maybe-uninitialized)

$(V)/obj/tests/%.o: tests/%.c $(V)/flags | $(V)/tests/test_build.h
	@mkdir -p $(@D)
	$(CC) $(COMMON) $(CRITERION) -Isrc -Itests -I$(V)/tests -MMD -MP -c $< -o $@

# The tests see the library's hidden symbols, so they link its objects.
$(V)/tests/run: $(TESTS) $(SUPPORT) $(OBJECTS) $(V)/objects
	$(CC) $(COMMON) $(TESTS) $(SUPPORT) $(OBJECTS) $(LINKER) $(LDFLAGS) -lcriterion -o $@

# Tests of adapters, each against the real library. What is not built is in a list that scripts/run_tests.sh repeats.
$(V)/tests/adapters: $(ADAPTER_TESTS) $(SUPPORT) $(OBJECTS) $(V)/objects
	$(if $(wildcard $(READY:%=tests/adapters/test_%.cpp)),$(CXX) $(CXX_COMMON),$(CC) $(COMMON)) \
	    $(ADAPTER_TESTS) $(SUPPORT) $(OBJECTS) $(LINKER) $(LDFLAGS) -lcriterion $(call libs_of,$(READY)) -o $@

$(V)/tests/adapters.skipped: FORCE
	@mkdir -p $(@D)
	@$(if $(READY),,rm -f $(V)/tests/adapters;) \
	    { $(foreach each,$(filter-out $(READY),$(ADAPTERS)),echo '$(call lacks,tests/adapters/test_$(each))';) :; } | tee $@

adapter_flags = $(call cflags_of,$*) -Wno-conversion -Isrc -Itests -I$(V)/tests -MMD -MP

$(V)/obj/tests/adapters/test_%.o: tests/adapters/test_%.c $(V)/flags | $(V)/tests/test_build.h
	@mkdir -p $(@D)
	$(CC) $(COMMON) $(adapter_flags) -c $< -o $@

$(V)/obj/tests/adapters/test_%.o: tests/adapters/test_%.cpp $(V)/flags | $(V)/tests/test_build.h
	@mkdir -p $(@D)
	$(CXX) $(CXX_COMMON) $(adapter_flags) -c $< -o $@

$(STRESS:%=$(V)/tests/%): $(V)/tests/%: $(V)/obj/tests/%.o $(SUPPORT) $(OBJECTS)
	$(CC) $(COMMON) $< $(SUPPORT) $(OBJECTS) $(LINKER) $(LDFLAGS) -o $@

$(V)/tests/fuzz: $(FUZZ) $(SUPPORT) $(OBJECTS) $(V)/objects
	$(CC) $(COMMON) $(FUZZ) $(SUPPORT) $(OBJECTS) $(LINKER) $(LDFLAGS) -o $@

# The suites that reach the sections most.
sections: $(V)/sections/tests/run

$(V)/sections/tests/run: $(patsubst %,$(V)/obj/tests/test_%.o,percpu home api steps_sections) $(SUPPORT) $(OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(COMMON) $^ $(LINKER) $(LDFLAGS) -lcriterion -o $@

# libFuzzer brings the main of its own.
$(V)/tests/fuzz_target: $(filter-out %/fuzz.o,$(FUZZ)) $(V)/obj/tests/fuzz/target.o $(SUPPORT) $(OBJECTS)
	$(CC) $(COMMON) -fsanitize=fuzzer $^ $(LDFLAGS) -o $@

# ---- Checks: each builds what it runs and closes on a count ----

checked := $(call variant,1,1,)
release := $(call variant,0,0,)

check: tests-checked tests-release
	scripts/run_tests.sh three-ways $(checked) $(release)

# Beside each other: what links at the end of one build leaves a CPU to the other.
.PHONY: tests-checked tests-release
tests-checked:
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE= tests
tests-release:
	$(MAKE) DEBUG=0 COUNTERS=0 SANITIZE= tests

check-asan:
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE=address tests
	scripts/run_tests.sh asan $(call variant,1,1,address)

check-ubsan:
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE=undefined tests
	scripts/run_tests.sh two-ways $(call variant,1,1,undefined)

# Criterion does not run under ThreadSanitizer: the stress programs run by themselves.
check-tsan:
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE=thread stress
	scripts/run_tests.sh tsan $(call variant,1,1,thread)

check-valgrind: tests-checked
	scripts/run_tests.sh valgrind $(checked)

# The library as one file: the suites that know the public header only, in the build that programs have, and all others
# that look at the library and not at the tree.
check-single: tests-checked build/single/hakheap.c
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE= $(checked)/single/inside/tests/run
	$(MAKE) DEBUG=0 COUNTERS=0 SANITIZE= $(release)/single/outside/tests/run
	scripts/run_tests.sh three-ways $(release)/single/outside
	HAK_TEST_FILTER='!(bench|examples|fuzz|packaging|plugins|programs|stress|tree)/*' \
	    scripts/run_tests.sh once $(checked)/single/inside

# What the optimiser makes of the sections: each level in a directory of its own, build/gcc_-O<level>-debug-counters.
OPTIMISATIONS := 0 1 g 3
check-optimised: $(OPTIMISATIONS:%=optimised-%)
	scripts/run_tests.sh sections $(OPTIMISATIONS:%=build/gcc_-O%-debug-counters/sections)

optimised-%:
	$(MAKE) CC='gcc -O$*' CFLAGS='-g -Wno-maybe-uninitialized' DEBUG=1 COUNTERS=1 SANITIZE= sections

# ---- Random operations against a model: see docs/reliability.md ----

# Seconds, seed and threads of a run, and how magazines are reached: mm_cid, cpu_id or locked.
SECONDS := 60
SEED    := 1
THREADS := 1
MODE    := mm_cid
fuzz_mode = $(or $(patsubst %,HAKHEAP_RSEQ=%,$(patsubst mm_cid,,$(patsubst cpu_id,cpu,$(patsubst locked,0,$(MODE))))),-u HAKHEAP_RSEQ)
fuzz_run = env $(fuzz_mode) $(V)/tests/fuzz --seconds $(SECONDS) --seed $(SEED) --threads $(THREADS)

fuzz: $(V)/tests/fuzz
	$(fuzz_run) --save $(V)

soak: $(V)/tests/fuzz
	$(fuzz_run) --soak

check-fuzz:
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE= $(checked)/tests/fuzz
	$(MAKE) DEBUG=0 COUNTERS=0 SANITIZE= $(release)/tests/fuzz
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE=address $(call variant,1,1,address)/tests/fuzz
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE=thread $(call variant,1,1,thread)/tests/fuzz
	scripts/run_fuzz.sh $(checked) $(release) $(call variant,1,1,address) $(call variant,1,1,thread)

# Finds sequences that reach code that those of the corpus do not, and keeps them there.
libfuzzer := CC=clang SANITIZE=fuzzer-no-link,address DEBUG=1 COUNTERS=1
libfuzzer_dir := build/clang-debug-counters-fuzzer-no-link,address
fuzz-libfuzzer:
	$(MAKE) $(libfuzzer) '$(libfuzzer_dir)/tests/fuzz_target'
	@mkdir -p build/corpus
	env $(fuzz_mode) $(libfuzzer_dir)/tests/fuzz_target -max_total_time=$(SECONDS) -max_len=2048 -len_control=0 \
	    build/corpus tests/fuzz/corpus

# Takes the fewest of them into the corpus that reach all that is reached.
fuzz-minimise:
	$(MAKE) $(libfuzzer) '$(libfuzzer_dir)/tests/fuzz_target'
	@mkdir -p build/corpus-least
	env $(fuzz_mode) $(libfuzzer_dir)/tests/fuzz_target -merge=1 -use_counters=0 build/corpus-least tests/fuzz/corpus build/corpus

# ---- Random sequences of operations against a limit: in caches of all kinds the same ones are refused ----

WORKLOADS := 1000
workloads:
	$(MAKE) DEBUG=1 COUNTERS=1 SANITIZE= suites
	HAK_TEST_WORKLOADS=$(WORKLOADS) HAK_TEST_FILTER='limits/refusals*' scripts/run_tests.sh three-ways $(checked)

# ---- Mutants: what tests notice, see scripts/mutants.py ----

JOBS ?= 2
ONLY ?= *

# Takes hours; goes on where it was stopped. SECONDS: of the fuzzer, for each.
mutants:
	scripts/mutants.py run --jobs $(JOBS) --only '$(ONLY)' --seconds $(SECONDS)

planted:
	scripts/mutants.py planted

# ---- Models: protocols proved by spin ----

models:
	models/run.sh

# ---- One file, for trees that carry the library ----

.PHONY: single check-single

single: build/single/hakheap.c

build/single/hakheap.c: scripts/single.py $(wildcard src/*.[ch]) include/hakheap.h LICENSE
	scripts/single.py $(@D)

$(V)/single/hakheap.o: build/single/hakheap.c $(V)/flags
	@mkdir -p $(@D)
	$(CC) $(COMMON) -c $< -o $@

# The same text with the names inside of it for the tests.
$(V)/single/open.o: build/single/hakheap.c $(V)/flags
	@mkdir -p $(@D)
	$(CC) $(COMMON) -DHAK_PRIVATE= -c $< -o $@

# Suites that know the public header only link the one file as a program does.
OUTSIDE := api fork misuse scope signal steps_sections
OUTSIDE_OBJECTS := $(OUTSIDE:%=$(V)/obj/tests/test_%.o) $(V)/obj/tests/single_support.o \
    $(patsubst %,$(V)/obj/tests/support_%.o,child contract step)
# All suites, and what they see of the inside. Assembly in their objects names what has hak_ before it in the one file.
NAMED := $(foreach name,percpu_rseq_offset percpu_index_offset,-Wl,--defsym=$(name)=hak_$(name))

$(V)/single/outside/tests/run: $(OUTSIDE_OBJECTS) $(V)/single/hakheap.o
	@mkdir -p $(@D)
	$(CC) $(COMMON) $^ $(LINKER) $(LDFLAGS) -lcriterion -o $@

$(V)/single/inside/tests/run: $(TESTS) $(SUPPORT) $(V)/single/open.o
	@mkdir -p $(@D)
	$(CC) $(COMMON) $^ $(NAMED) $(LINKER) $(LDFLAGS) -lcriterion -o $@

# ---- The interface, against the committed one ----

.PHONY: abi-check abi-update

abi-check abi-update:
	$(MAKE) DEBUG=0 COUNTERS=0 SANITIZE= $(release)/libhakheap.so
	scripts/abi.sh $(@:abi-%=%) $(release)/libhakheap.so

# ---- Installing ----

HEADERS := $(wildcard include/hakheap/*.h include/hakheap/*.hpp)
PAGES   := $(wildcard packaging/man/*.3)
# They lie as in the tree, so that their links hold.
DOCUMENTS := LICENSE README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md $(wildcard docs/*.md docs/*.svg examples/*.c examples/*.cpp examples/*.h)

# $(call below,DIRECTORY): the part of it below PREFIX; empty where it lies elsewhere.
below = $(patsubst $(PREFIX)/%,%,$(filter $(PREFIX)/%,$(1)))
# Paths by the prefix, so that `pkg-config --define-prefix` and CMake find what was moved as a whole.
from_prefix = $(if $(call below,$(1)),$${prefix}/$(call below,$(1)),$(1))
upwards     = $(subst $(space),/,$(patsubst %,..,$(subst /, ,$(call below,$(LIBDIR))/cmake/hakheap)))
from_cmake  = $(if $(and $(call below,$(1)),$(call below,$(LIBDIR))),$${_hakheap_here}/$(upwards)/$(call below,$(1)),$(1))
FILL = sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(version)|' -e 's|@MAJOR@|$(subst libhakheap.so.,,$(SONAME))|' \
       -e 's|@SONAME@|$(SONAME)|' -e 's|@LIBDIR@|$(call from_prefix,$(LIBDIR))|' \
       -e 's|@INCLUDEDIR@|$(call from_prefix,$(INCLUDEDIR))|' -e 's|@CMAKE_INCLUDEDIR@|$(call from_cmake,$(INCLUDEDIR))|'

to_include := '$(DESTDIR)$(INCLUDEDIR)'
to_lib     := '$(DESTDIR)$(LIBDIR)'
to_cmake   := '$(DESTDIR)$(LIBDIR)/cmake/hakheap'
to_man     := '$(DESTDIR)$(MANDIR)/man3'
to_doc     := '$(DESTDIR)$(DOCDIR)'

install: all
	install -d $(to_include) $(to_lib)/pkgconfig $(to_cmake) $(to_man) $(to_doc)
	install -m 644 include/hakheap.h $(to_include)
	set -e; for each in $(HEADERS); do install -D -m 644 $$each $(to_include)/$${each#include/}; done
	install -m 644 build/libhakheap.a $(to_lib)
	install -m 755 build/libhakheap.so $(to_lib)/libhakheap.so.$(version)
	ln -sf libhakheap.so.$(version) $(to_lib)/$(SONAME)
	ln -sf $(SONAME) $(to_lib)/libhakheap.so
	$(FILL) packaging/hakheap.pc.in > $(to_lib)/pkgconfig/hakheap.pc
	set -e; for each in Config ConfigVersion; do \
	    $(FILL) packaging/hakheap$$each.cmake.in > $(to_cmake)/hakheap$$each.cmake; done
	chmod 644 $(to_lib)/pkgconfig/hakheap.pc $(to_cmake)/*
	install -m 644 $(PAGES) $(to_man)
	set -e; for each in $(DOCUMENTS); do install -D -m 644 $$each $(to_doc)/$$each; done

# Directories of the library's own go with it.
uninstall:
	for each in hakheap.h $(HEADERS:include/%=%); do rm -f $(to_include)/$$each; done
	for each in libhakheap.a libhakheap.so $(SONAME) libhakheap.so.$(version) pkgconfig/hakheap.pc; do \
	    rm -f $(to_lib)/$$each; done
	for each in Config ConfigVersion; do rm -f $(to_cmake)/hakheap$$each.cmake; done
	for each in $(notdir $(PAGES)); do rm -f $(to_man)/$$each; done
	for each in $(DOCUMENTS); do rm -f $(to_doc)/$$each; done
	set -e; for each in $(to_include)/hakheap $(to_cmake) $(to_doc)/docs $(to_doc)/examples $(to_doc); do \
	    [ ! -d "$$each" ] || rmdir "$$each"; done

# ---- The rest ----

docs:
	scripts/docs.sh

# PICTURES: a directory that keeps what was seen.
docs-look: docs
	scripts/docs_look.py $(if $(PICTURES),--screenshots '$(PICTURES)')

bench:
	bench/suite.py

bench-guard:
	CC='$(CC)' CFLAGS='$(CFLAGS)' bench/guard.sh

format:
	clang-format -i $(FORMATTED)

format-check:
	clang-format --dry-run --Werror $(FORMATTED)

clean:
	rm -rf build

help:
	@echo 'make                 build/libhakheap.a and build/libhakheap.so'
	@echo 'make examples        the programs of examples/, in build/examples/'
	@echo 'make integration     real programs on hakheap beside other allocators; installs what they need'
	@echo 'make check           all tests, in a debug and a release build; what knows a mode by mm_cid, by cpu_id and locked'
	@echo 'make check-asan      all tests under AddressSanitizer'
	@echo 'make check-ubsan     all tests under UndefinedBehaviorSanitizer, by the best mode and locked'
	@echo 'make check-tsan      the stress programs under ThreadSanitizer'
	@echo 'make check-valgrind  the tests under valgrind'
	@echo 'make check-optimised the tests of sections at gcc -O0, -O1, -Og and -O3'
	@echo 'make check-single    tests against the one file of make single'
	@echo 'make fuzz            random operations against a model; SECONDS=60 SEED=1 THREADS=1 MODE=mm_cid, cpu_id or locked'
	@echo 'make soak            the same in one process, with the slope of its memory; SECONDS=36000'
	@echo 'make check-fuzz      the same for a minute and a half, over builds, modes and threads'
	@echo 'make fuzz-libfuzzer  finds sequences for the corpus; fuzz-minimise takes them into build/corpus-least'
	@echo 'make workloads       random sequences against a limit, in each mode; WORKLOADS=1000'
	@echo 'make models          proves the protocol of limits with spin, and that each seeded bug is found'
	@echo 'make mutants         kills small changes of src/ by the tests; JOBS=2 ONLY="<pattern>" SECONDS=60 of the fuzzer'
	@echo 'make planted         how soon the fuzzer alone finds each planted bug'
	@echo 'make bench           bench/suite.py: every benchmark on every allocator, as a page; BENCH=quick: few rounds'
	@echo 'make bench-guard     bench/guard.sh, counts of instructions against bench/guard.csv'
	@echo 'make docs            build/docs/html, by Doxygen and doxygen-awesome-css'
	@echo 'make docs-look       looks at each page of it in headless Chromium, wide and narrow; PICTURES=<directory> keeps them'
	@echo 'make format          rewrites the sources by .clang-format; format-check only compares'
	@echo 'make single          build/single/hakheap.c and hakheap.h, the library as one file; needs python3'
	@echo 'make abi-check       compares the interface with packaging/hakheap.abi; abi-update writes that anew'
	@echo 'make install         PREFIX=$(PREFIX) LIBDIR=$(LIBDIR) DESTDIR=$(DESTDIR); uninstall takes it away'
	@echo 'make clean           removes build/'
	@echo
	@echo 'COUNTERS=1           compiles the debug counters in'
	@echo 'DEBUG=1              compiles the asserts in, and the points where tests hold a thread (src/stall.h)'
	@echo 'CC=clang             any compiler that takes gcc options'
	@echo 'CFLAGS="-O2 -flto"   or CC="gcc -flto"; the archive is machine code all the same; clang needs lld'
	@echo 'SANITIZE=address     or undefined, or thread'
	@echo 'HAK_TEST_SECONDS=60  environment: how long each stress program of the checks runs (2)'

-include $(wildcard $(V)/obj/*.d $(V)/obj/tests/*.d $(V)/obj/tests/fuzz/*.d $(V)/obj/tests/adapters/*.d \
    $(V)/obj/examples/*.d $(V)/examples/*.d)
