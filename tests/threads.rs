//! Threads, signals and fork, in a C program.

mod support;

use std::process::Command;

use support::{LINKS, program, succeed};

#[test]
fn threads_signal_handlers_and_children_of_fork_may_call_it() {
    for link in LINKS {
        succeed(&mut Command::new(program("threads", link)));
    }
}
