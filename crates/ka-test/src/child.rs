//! Child processes.
#![expect(unsafe_code, reason = "signal, and a closure between fork and exec")]

use std::env;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::artifact::shim;
use crate::path::scratch;

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

/// Gives all signals their default actions in a command's process. The tests may have inherited ignored signals, for
/// example from nohup(1), or from a script that runs them in the background. The standard library unblocks signals.
pub fn reset_signals(command: &mut Command) {
    let reset = || {
        for signal in 1..32 {
            // SAFETY: signal(2) takes a number and a constant. For SIGKILL and SIGSTOP, it fails and changes nothing.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure calls only signal(2), which is async-signal-safe.
    unsafe { command.pre_exec(reset) };
}

/// Returns a command that runs a program under the shim, without any `KA_` variable of the caller.
pub fn preloaded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", shim());
    remove_ka_variables(&mut command);
    command
}

/// Starts a service, and waits until it tells the service manager that it is ready (sd_notify(3)). Its standard output
/// and standard error are pipes.
#[track_caller]
pub fn start_service(command: &mut Command) -> Child {
    let path = scratch("service-ready");
    let ready = UnixDatagram::bind(&path).unwrap();
    // An ordinary user may write to it.
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    ready.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    command.env("NOTIFY_SOCKET", &path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut message = [0; 64];
    let size = ready.recv(&mut message).unwrap_or_else(|error| {
        let _ = child.kill();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        panic!("the service is not ready: {error}: {err}")
    });
    let _ = fs::remove_file(path);
    assert_eq!(&message[..size], b"READY=1");
    child
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
