//! Threads, signals and fork, in a C program.

use std::process::Command;

use ka_test::child::succeed;
use ka_test::compiler::{LINKS, program};

#[test]
fn threads_signal_handlers_and_children_of_fork_may_call_it() {
    for link in LINKS {
        succeed(&mut Command::new(program("threads", link)));
    }
}
