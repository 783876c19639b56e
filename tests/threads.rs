//! Tests libka in threads, in signal handlers and after fork, with a C program.

use std::process::Command;

use ka_test::child::succeed;
use ka_test::compiler::{LINKS, program};

#[test]
fn threads_signal_handlers_and_forked_children_may_call_libka() {
    for link in LINKS {
        succeed(&mut Command::new(program("threads", link)));
    }
}
