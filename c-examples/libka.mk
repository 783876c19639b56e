# Finds libka for the examples in C and C++. The Makefile that includes this file sets ROOT to the folder above c-examples.
# If ROOT has the sources of libka, the examples use the libka that is built from them. Otherwise, as in the
# documentation of a package, they use the installed libka.

ifneq ($(wildcard $(ROOT)/src/libka.map),)

RELEASE := $(ROOT)/target/release
LIBKA := $(ROOT)/include/ka.h $(ROOT)/include/ka.hpp $(RELEASE)/libka.so
LIBKA_CFLAGS := -I$(ROOT)/include
LIBKA_LIBS := -L$(RELEASE) -lka -Wl,-rpath,'$$ORIGIN/$(RELEASE)'
NEED := $(ROOT)/scripts/need

$(RELEASE)/libka.so:
	@$(NEED) rust cc
	$(MAKE) -C $(ROOT) libka

else

LIBKA_CFLAGS := $(shell pkg-config --cflags ka)
LIBKA_LIBS := $(shell pkg-config --libs ka)
NEED := :

endif
