//! `ka run --via seccomp` under attack. A program makes the supervisor's own system calls block. The other programs of
//! the tree must still connect, and ka must name the attacker.

mod command;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use command::{bare, ka, number_after, outcome, source};
use ka_test::child::stdout;
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_own_network_namespace, is_root};
use ka_test::path::{copy_program, scratch};
use ka_test::process::{children, is_running, kill, state};
use ka_test::wait::eventually;

/// The output of `seen connect` if both ends of a connection have the policy.
const BOTH: [&str; 2] = ["1 60 10 6 0", "1 60 10 6 0"];

/// The same output without ka.
const NEITHER: [&str; 2] = ["0 7200 75 9 0", "0 7200 75 9 0"];

/// Builds a static program of tests/c, under its own name.
fn made(name: &str) -> PathBuf {
    let program = compile(cc().args(["-static", "-pthread"]), &source(name), Linkage::Nothing);
    let folder = scratch(&format!("{name}-folder"));
    fs::create_dir(&folder).unwrap();
    copy_program(program, folder.join(name));
    folder.join(name)
}

fn seen() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| made("seen"))
}

fn stall() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| made("stall"))
}

/// Returns whether the attacks can be prepared on this machine.
fn can_attack() -> bool {
    // SAFETY: the call takes no pointer.
    let fault = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    if let Ok(fault @ 0..) = i32::try_from(fault) {
        // SAFETY: this process owns the descriptor.
        unsafe { libc::close(fault) };
        if is_root() {
            return true;
        }
    }
    skip(
        "only root can have the kernel's own accesses wait for a page, and this kernel must have userfaultfd(2)",
    );
    false
}

/// A tree of programs under one supervisor: attackers, and a victim that connects on request.
struct Tree {
    child: Child,
    lines: Lines<ChildStdout>,
    folder: PathBuf,
    served: usize,
    supervisor: i32,
    spare: i32,
}

impl Tree {
    /// Starts `stall` with these arguments, and waits until `count` attacks are under way.
    fn start(attack: &[&str], count: usize) -> Self {
        let folder = scratch("tree");
        fs::create_dir(&folder).unwrap();
        // The shell gives background programs /dev/null as input, so pass the input as descriptor 3.
        let script = "exec 3<&0; \"$0\" \"$@\" <&3 3<&- 2>>\"$FOLDER/attackers\" & exec 3<&-\n\
            n=1; while [ ! -e \"$FOLDER/end\" ]; do\n\
            if [ -e \"$FOLDER/$n\" ]; then \"$SEEN\" connect; echo served; n=$((n + 1)); else sleep 0.02; fi; done\n\
            exit 7";
        let mut command = ka();
        command.args(["run", "-v", "--via", "seccomp", "--", "sh", "-c", script]).arg(stall()).args(attack);
        command.env("FOLDER", &folder).env("SEEN", seen());
        let errors = fs::File::create(folder.join("errors")).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        let mut lines = Lines::new("the tree of programs", child.stdout.take().unwrap());
        for _ in 0..count {
            assert_eq!(lines.expect("`stalling`"), "stalling");
        }
        let mut tree = Self { child, lines, folder, served: 0, supervisor: 0, spare: 0 };
        eventually("ka has said who supervises", || tree.said().contains('\n'));
        let said = tree.said();
        (tree.supervisor, tree.spare) = (number_after(&said, "supervisor "), number_after(&said, "spare "));
        tree
    }

    /// Returns ka's messages on standard error.
    fn said(&self) -> String {
        fs::read_to_string(self.folder.join("errors")).unwrap()
    }

    /// Returns the kernel functions in which the supervisor's threads wait.
    fn waits(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.supervisor)).into_iter().flatten().flatten();
        tasks.filter_map(|task| fs::read_to_string(task.path().join("wchan")).ok()).collect()
    }

    /// Waits until `count` threads of the supervisor wait there.
    fn stuck(&self, place: &str, count: usize) {
        eventually(&format!("{count} threads of the supervisor are stuck in {place}"), || {
            self.waits().iter().filter(|wait| wait.starts_with(place)).count() >= count
                || self.said().contains("(stall) made a call that blocked")
        });
    }

    /// Makes the victim connect, and returns the options of both ends. Fails if the supervisor is stuck, because the
    /// attackers continue until the test ends.
    fn connects(&mut self) -> Vec<String> {
        self.served += 1;
        fs::write(self.folder.join(self.served.to_string()), "").unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let lines = &mut self.lines;
            scope.spawn(move || {
                let lines = lines.filter(|line| !line.starts_with("ended "));
                let _ = send.send(lines.take_while(|line| line != "served").collect());
            });
            let options = receive.recv_timeout(Duration::from_secs(20));
            if options.is_err() {
                // Without both processes calls fail, so the programs and the test end.
                drop(self.child.stdin.take());
                fs::write(self.folder.join("end"), "").unwrap();
                kill(self.spare, libc::SIGKILL);
                kill(self.supervisor, libc::SIGKILL);
            }
            options
        })
        .expect("the victim cannot connect while an attacker keeps the supervisor waiting")
    }

    /// Ends the attackers, then the program. Returns the command's status and ka's messages.
    fn end(mut self) -> (ExitStatus, String) {
        drop(self.child.stdin.take());
        fs::write(self.folder.join("end"), "").unwrap();
        let mut status = None;
        eventually("the command has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        eventually("supervisor and spare have ended", || {
            !is_running(self.supervisor) && !is_running(self.spare)
        });
        (status.unwrap(), self.said())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = fs::write(self.folder.join("end"), "");
        let _ = self.child.wait();
    }
}

/// Runs an attack as a user other than the supervisor's.
fn assert_supervisor_survives(attack: &str, place: &str) {
    if !can_attack() {
        return;
    }
    let mut tree = Tree::start(&[attack], 1);
    tree.stuck(place, 1);
    assert_eq!(tree.connects(), BOTH);
    eventually("ka says which program it was", || {
        tree.said().contains(" (stall) made a call that blocked the supervisor for 2 s: it was let through")
    });
    assert_eq!(tree.connects(), BOTH);
    let (status, said) = tree.end();
    assert_eq!(status.code(), Some(7), "{said}");
    // -v prints one line; the other line names the attacker.
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn a_held_socket_lock_does_not_stall_other_programs() {
    assert_supervisor_survives("lock", "__lock_sock");
}

#[test]
fn a_value_that_never_arrives_does_not_stall_other_programs() {
    assert_supervisor_survives("value", "handle_userfault");
}

#[test]
fn a_lingering_socket_does_not_stall_other_programs() {
    assert_supervisor_survives("linger", "wait_woken");
}

#[test]
fn a_file_with_a_blocking_close_does_not_stall_other_programs() {
    if !Path::new("/dev/fuse").exists() {
        skip("there is no /dev/fuse here");
        return;
    }
    assert_supervisor_survives("fuse", "request_wait_answer");
}

/// One user's processes cannot use up the supervisor's threads.
#[test]
fn many_attackers_of_another_user_do_not_stall_other_programs() {
    if !can_attack() {
        return;
    }
    let mut tree = Tree::start(&["lock", "24"], 24);
    tree.stuck("__lock_sock", 4);
    assert_eq!(tree.connects(), BOTH);
    let mark = "(stall) or its user keeps several threads of the supervisor waiting";
    eventually("ka says whose calls it lets through", || tree.said().contains(mark));
    assert_eq!(tree.connects(), BOTH);
    assert_eq!(tree.end().0.code(), Some(7));
}

/// If every thread is stuck, calls are let through without the policy, until a thread is free.
#[test]
fn without_a_free_thread_calls_pass_without_the_policy() {
    if !can_attack() {
        return;
    }
    if !in_own_network_namespace("without_a_free_thread_calls_pass_without_the_policy") {
        return;
    }
    let mut tree = Tree::start(&["lock", "40", "stay"], 40);
    let mark = "no thread of the supervisor is left";
    eventually("ka says that it lets all calls through", || {
        let options = tree.connects();
        assert!(options == BOTH || options == NEITHER, "{options:?}");
        tree.said().contains(mark)
    });
    assert_eq!(tree.connects(), NEITHER);
    drop(tree.child.stdin.take());
    eventually("sockets have the policy again", || tree.connects() == BOTH);
    let (status, said) = tree.end();
    assert_eq!(status.code(), Some(7), "{said}");
    assert_eq!(said.matches(mark).count(), 1, "{said}");
}

/// SIGKILL does not end a thread that waits for a socket's lock. So wait(2) never reports the end of the supervisor.
#[test]
fn the_spare_takes_over_from_a_supervisor_that_cannot_end() {
    if !can_attack() {
        return;
    }
    let mut tree = Tree::start(&["lock"], 1);
    tree.stuck("__lock_sock", 1);
    kill(tree.supervisor, libc::SIGKILL);
    assert_eq!(tree.connects(), BOTH);
    assert!(is_stuck(tree.supervisor), "a thread of the supervisor is still there");
    let line = format!("supervisor {} was killed: {} takes over", tree.supervisor, tree.spare);
    eventually("ka says so", || tree.said().contains(&line));
    // The program ends first, while the stuck thread still exists and the program is not a child of the spare.
    fs::write(tree.folder.join("end"), "").unwrap();
    let mut status = None;
    eventually("the command ends as its program does", || {
        status = tree.child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(7));
    tree.end();
}

/// Returns whether a process has a thread that cannot be killed.
fn is_stuck(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut threads = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    threads.any(|thread| state(thread) == Some('D'))
}

#[test]
fn a_stopped_supervisor_is_continued() {
    let mut tree = Tree::start(&["nothing"], 0);
    for _ in 0..3 {
        kill(tree.supervisor, libc::SIGSTOP);
        assert_eq!(tree.connects(), BOTH);
    }
    assert_eq!(tree.end().0.code(), Some(7));
}

/// Returns a full pipe without a reader.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
    // SAFETY: the call takes no pointer.
    let flags = |flags: i32| assert_eq!(unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETFL, flags) }, 0);
    flags(libc::O_NONBLOCK);
    let mut filled = fs::File::from(write.try_clone().unwrap());
    while filled.write(&[b'.'; 4096]).is_ok() {}
    while filled.write(b".").is_ok() {}
    flags(0);
    (read, write)
}

/// ka reports that a program uses io_uring, and that the supervisor was killed, while standard error is full.
#[test]
fn a_full_standard_error_does_not_stall_programs() {
    if outcome(bare(seen()).arg("ring")).1 != "0\n" {
        skip("no io_uring here");
        return;
    }
    let run = |script: &str| {
        let (read, write) = full_pipe();
        let mut command = ka();
        command.args(["run", "--via", "seccomp", "sh", "-c", script]).arg(seen());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(write).spawn().unwrap();
        drop(command);
        let mut status = None;
        eventually("the command has ended", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let mut options = String::new();
        child.stdout.take().unwrap().read_to_string(&mut options).unwrap();
        drop(read);
        (status.unwrap().code(), options)
    };
    let both = BOTH.join("\n") + "\n";
    assert_eq!(run("\"$0\" ring; \"$0\" connect"), (Some(0), format!("0\n{both}")));
    // The supervisor is the program's parent, so its PID is the shell's PPID.
    assert_eq!(run("\"$0\" connect; kill -KILL $PPID; \"$0\" connect"), (Some(0), both.repeat(2)));
}

/// A reader of the command's output does not wait for a stuck thread.
#[test]
fn a_stuck_thread_keeps_no_pipe_open() {
    if !can_attack() {
        return;
    }
    let folder = scratch("pipe");
    fs::create_dir(&folder).unwrap();
    let (attackers, stop) = std::io::pipe().unwrap();
    let script = "\"$0\" lock <&3 3<&- >\"$FOLDER/out\" 2>/dev/null & \n\
                  while ! grep -q stalling \"$FOLDER/out\"; do sleep 0.02; done; sleep 0.5; echo out";
    // The shell passes its own input on to the attacker.
    let script = format!("exec 3<&0; {script}");
    let mut command = ka();
    command.args(["run", "--via", "seccomp", "sh", "-c", &script]).arg(stall()).env("FOLDER", &folder);
    let mut child = command.stdin(attackers).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let (mut written, mut said) = (String::new(), String::new());
        out.read_to_string(&mut written).unwrap();
        err.read_to_string(&mut said).unwrap();
        (written, said)
    });
    eventually("both pipes have ended", || reader.is_finished());
    drop(stop);
    assert_eq!(reader.join().unwrap().0, "out\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// ps(1) and pgrep(1) distinguish the program, supervisor, spare and front process.
#[test]
fn supervisor_and_spare_have_their_own_titles() {
    let mut tree = Tree::start(&["nothing"], 0);
    let title = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        String::from_utf8(line).unwrap().trim_end_matches('\0').replace('\0', " ")
    };
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim_end().to_owned();
    let (supervisor, spare) = (tree.supervisor, tree.spare);
    let [program] = children(supervisor)[..] else { panic!("{:?}", children(supervisor)) };
    for (pid, role) in [(supervisor, "supervisor"), (spare, "spare")] {
        assert_eq!(name(pid), format!("ka-{role}"));
        assert_eq!(title(pid), format!("ka: {role} of sh ({program})"));
        let shown = stdout(Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid.to_string()]));
        assert_eq!(shown.trim_end(), title(pid));
    }
    // The front process keeps its original command line.
    let front = tree.child.id().try_into().unwrap();
    assert!(title(front).contains("ka run -v --via seccomp -- sh"), "{}", title(front));
    assert_eq!(tree.connects(), BOTH);
    // The spare becomes the supervisor.
    kill(supervisor, libc::SIGKILL);
    let expected = format!("ka: supervisor of sh ({program})");
    eventually("the spare takes over", || title(spare) == expected && name(spare) == "ka-supervisor");
    assert_eq!(tree.end().0.signal(), None);
}

/// The supervisor writes no log, and reports that it ignores KA_LOG.
#[test]
fn an_ignored_ka_log_is_reported() {
    let log = scratch("log");
    let under = |quiet: &str| {
        let mut command: Command = ka();
        command
            .env("KA_LOG", &log)
            .env("KA_QUIET", quiet)
            .args(["run", "--via", "seccomp"])
            .arg(seen())
            .arg("listen");
        let (status, _, said) = outcome(&mut command);
        assert_eq!(status, 0, "{said}");
        assert!(!log.exists());
        said
    };
    let said = under("0");
    assert!(
        said.starts_with("ka: KA_LOG=\"")
            && said.contains("ka run --via preload")
            && said.lines().count() == 1,
        "{said}"
    );
    assert_eq!(under("1"), "");
}
