# Which libka the examples are built with: that of the sources around them; elsewhere, as in the documentation of a
# package, the one that is installed.

ifneq ($(wildcard ../src/libka.map),)

RELEASE := ../target/release
LIBKA := ../include/ka.h ../include/ka.hpp $(RELEASE)/libka.so
LIBKA_CFLAGS := -I../include
LIBKA_LIBS := -L$(RELEASE) -lka -Wl,-rpath,'$$ORIGIN/$(RELEASE)'
NEED := ../scripts/need

$(RELEASE)/libka.so:
	@$(NEED) rust cc
	$(MAKE) -C .. libka

else

LIBKA_CFLAGS := $(shell pkg-config --cflags ka)
LIBKA_LIBS := $(shell pkg-config --libs ka)
NEED := :

endif
