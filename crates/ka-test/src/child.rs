//! Child processes.

use std::env;
use std::ffi::OsStr;
use std::process::{Child, Command, Output, Stdio};

use crate::artifact::shim;

/// Runs a command, which must exit with status 0, and returns its output.
pub fn succeed(command: &mut Command) -> Output {
    // The Debug format of a command would include the whole environment.
    let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    let line = words.join(" ".as_ref()).to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(
        output.status.success(),
        "{line}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command, which must exit with status 0, and returns its standard output.
pub fn stdout(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).unwrap()
}

/// Returns the standard error of a command that has ended.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Removes the variables of ka from a command's environment, so that only those that the test sets are left.
pub fn remove_ka_variables(command: &mut Command) {
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KA_")) {
        command.env_remove(name);
    }
}

/// Returns a command that runs a program under the shim, without any `KA_` variable of the caller.
pub fn preloaded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", shim());
    remove_ka_variables(&mut command);
    command
}

/// A child process that is killed when this is dropped.
pub struct Running(pub Child);

impl Running {
    /// Starts a command with /dev/null as standard input and standard output.
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
