//! Forks processes that run a closure and do not execute another program.
//!
//! A system call on another program's object may block forever, because the program can hold a lock. ka must neither
//! hang with it nor keep its caller waiting. So a worker process makes such calls, and ka can kill and abandon it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use libc::c_int;

use super::check;
use super::descriptor::{close_all_but, replace_by_null};
use crate::Error;

/// Forks a worker process, which runs `work` and exits. Returns its PID, and the read end of the pipe that `work`
/// writes to.
///
/// The worker keeps only the descriptors in `keep`. So a worker that hangs keeps no pipe, terminal or folder of ka's
/// caller open. The kernel kills the worker when this process ends.
pub(crate) fn fork_worker(keep: &[RawFd], work: impl FnOnce(File)) -> io::Result<(i32, File)> {
    let (read_end, write_end) = pipe()?;
    // If SIGCHLD were ignored, a child's PID could be reused as soon as the child ends, and `kill_worker` could kill
    // another process.
    // SAFETY: takes no pointer, and there is no other thread.
    let parent = unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::getpid()
    };
    // SAFETY: there is no other thread, so the child may do whatever this process may.
    let child = check(unsafe { libc::fork() })?;
    if child != 0 {
        return Ok((child, read_end));
    }
    let kept = [keep, &[write_end.as_raw_fd()]].concat();
    // SAFETY: no call takes a pointer. The child uses only the descriptors in `kept`, and ends with _exit, so no
    // destructor closes the others again.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // The parent may have ended before PR_SET_PDEATHSIG took effect.
        if detach(&kept).is_err() || libc::getppid() != parent {
            libc::_exit(1);
        }
    }
    work(write_end);
    // SAFETY: takes no pointer.
    unsafe { libc::_exit(0) }
}

/// Lets a worker continue until it exits by itself: the kernel no longer kills it when its parent ends, and no signal
/// except SIGKILL ends it. The worker must notice the end of its parent.
pub(crate) fn outlive_parent() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set, and sigprocmask reads it. A null pointer is allowed: the old mask is not
    // requested. prctl takes no pointer here.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        libc::prctl(libc::PR_SET_PDEATHSIG, 0);
    }
}

/// Enlarges a pipe's buffer to 1 MiB, the default limit for ordinary users. If the kernel refuses, the size is
/// unchanged. fcntl(2)
pub(crate) fn widen_pipe(pipe: BorrowedFd<'_>) {
    // SAFETY: takes no pointer.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20) };
}

/// Kills a worker. A worker that waits for a lock dies only when it gets the lock, so the caller must not wait for the
/// worker's end.
pub(crate) fn kill_worker(worker: i32) {
    // SAFETY: takes no pointer. The worker has not been waited for, so its PID is not reused.
    unsafe { libc::kill(worker, libc::SIGKILL) };
}

/// Waits for the end of a worker. The worker must have closed its end of the pipe, so that it is about to end.
pub(crate) fn wait_for(worker: i32) {
    // SAFETY: a null pointer is allowed: no status is requested.
    unsafe { libc::waitpid(worker, ptr::null_mut(), 0) };
}

/// Returns whether a worker has ended. After that, its PID may be reused.
pub(crate) fn has_ended(worker: i32) -> bool {
    // SAFETY: a null pointer is allowed: no status is requested. `WNOHANG` never waits.
    unsafe { libc::waitpid(worker, ptr::null_mut(), libc::WNOHANG) != 0 }
}

/// Starts a process that runs `work` and exits. The process is not a child of this process.
///
/// It has its own session, and the root folder as working directory. It keeps only the descriptors in `keep`. Standard
/// descriptors that are not in `keep` become /dev/null. This process must have a single thread.
///
/// # Errors
///
/// The errno of pipe2(2) or fork(2). `work` then does not run.
pub fn start_detached(keep: &[RawFd], work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // The child forks again and exits. A pipe reports the result of the second fork, an errno or 0. The exit status
    // of the child would be lost if this process has inherited an ignored SIGCHLD.
    let (read_end, write_end) = pipe()?;
    // SAFETY: there is no other thread, so the child may do whatever this process may.
    let child = check(unsafe { libc::fork() })?;
    if child != 0 {
        drop(write_end);
        let started = receive_errno(&read_end);
        // SAFETY: a null pointer is allowed: no status is requested. The child ends at once. If the kernel has already
        // reaped it, the call fails with ECHILD.
        while unsafe { libc::waitpid(child, ptr::null_mut(), 0) } == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        return started;
    }
    // SAFETY: no call takes a pointer. The new process uses only the descriptors in `keep`, and ends with _exit, so no
    // destructor closes the others again.
    unsafe {
        libc::setsid();
        match check(libc::fork()) {
            Ok(0) => send_errno(&write_end, 0),
            Ok(_) => libc::_exit(0),
            Err(error) => {
                send_errno(&write_end, error.raw_os_error().unwrap_or(libc::EIO));
                libc::_exit(1)
            }
        }
        let _ = detach(keep);
    }
    let _ = work();
    // SAFETY: takes no pointer.
    unsafe { libc::_exit(0) }
}

/// Makes this process independent of the files that it inherited: changes to the root folder, closes descriptors, and
/// replaces the standard ones by /dev/null. The descriptors in `keep` stay. Fails if a standard descriptor cannot be
/// replaced.
///
/// # Safety
///
/// This process must have a single thread, and must use only the descriptors in `keep` from now on.
unsafe fn detach(keep: &[RawFd]) -> io::Result<()> {
    let _ = std::env::set_current_dir("/");
    // SAFETY: the caller promises that nothing uses the closed descriptors.
    unsafe { close_all_but(3, keep) };
    let mut standard = (0..=2).filter(|standard| !keep.contains(standard));
    // SAFETY: as above.
    standard.try_for_each(|standard| unsafe { replace_by_null(standard) })
}

/// Writes an errno to a pipe. If the write fails, the reader finds the end of the pipe, which is an error too.
fn send_errno(mut pipe: &File, errno: c_int) {
    let _ = pipe.write_all(&errno.to_ne_bytes());
}

/// Reads an errno from a pipe, and returns it as an error unless it is 0.
fn receive_errno(mut pipe: &File) -> io::Result<()> {
    let mut bytes = [0; size_of::<c_int>()];
    pipe.read_exact(&mut bytes).map_err(|error| match error.kind() {
        kind @ io::ErrorKind::UnexpectedEof => io::Error::new(kind, Error::ProcessEnded),
        _ => error,
    })?;
    match c_int::from_ne_bytes(bytes) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Makes a pipe, and returns its read end and its write end. Both are closed on exec.
fn pipe() -> io::Result<(File, File)> {
    let (read, write) = io::pipe()?;
    Ok((OwnedFd::from(read).into(), OwnedFd::from(write).into()))
}
