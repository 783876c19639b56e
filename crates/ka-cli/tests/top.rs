//! Tests `ka top` in tmux, by what the terminal shows, and by the kernel's values of the sockets.

mod command;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command::{Holder, WaitingProgram, bare, counter, holder, ka, outcome, source};
use ka_test::artifact::release;
use ka_test::child::{stdout, succeed};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::kernel::has_ipv6;
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::namespace::{in_own_namespaces, is_root};
use ka_test::path::{PublicFolder, copy_program, scratch};
use ka_test::process;
use ka_test::wait::eventually;

/// A terminal of tmux with a shell, on a tmux server of its own.
struct Pane {
    /// The folder of the server's socket, whose path must be short.
    folder: PublicFolder,
}

impl Pane {
    /// Opens a terminal. `environment` has entries such as `LC_ALL=C`.
    fn open(width: u16, height: u16, environment: &[&str]) -> Self {
        let pane = Self { folder: PublicFolder::new("tmux") };
        let mut tmux = pane.tmux();
        tmux.args(["new-session", "-d", "-x", &width.to_string(), "-y", &height.to_string()]);
        for entry in environment {
            tmux.args(["-e", entry]);
        }
        succeed(tmux.args(["-e", "ENV=", "sh"]));
        // The shell prints a dollar sign when it is ready for a command. The prompt of root has another character.
        pane.expect("a prompt", |screen| screen.starts_with(['$', '#']));
        pane.run("PS1='$ '; clear");
        pane.expect("the prompt", |screen| screen.starts_with('$'));
        pane
    }

    fn tmux(&self) -> Command {
        let mut tmux = bare("tmux");
        tmux.env("TMUX_TMPDIR", &*self.folder).env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        tmux.args(["-L", "ka", "-f", "/dev/null"]);
        tmux
    }

    /// Types a command of the shell, such as `KA top 1234`. KA is the path of ka.
    fn run(&self, line: &str) {
        let line = line.replace("KA", release().join("ka").to_str().unwrap());
        succeed(self.tmux().args(["send-keys", "-l", &line]));
        self.press(&["Enter"]);
    }

    /// Presses keys, which have tmux's names.
    fn press(&self, keys: &[&str]) {
        succeed(self.tmux().arg("send-keys").args(keys));
    }

    fn resize(&self, width: u16, height: u16) {
        let size = [width, height].map(|size| size.to_string());
        succeed(self.tmux().args(["resize-window", "-x", &size[0], "-y", &size[1]]));
    }

    /// Returns what the terminal shows.
    fn screen(&self) -> String {
        stdout(self.tmux().args(["capture-pane", "-p"]))
    }

    /// Returns the value of a tmux format.
    fn format(&self, format: &str) -> String {
        stdout(self.tmux().args(["display-message", "-p", format])).trim_end().to_owned()
    }

    /// Waits until the terminal shows something.
    #[track_caller]
    fn expect(&self, what: &str, shows: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let mut tries = 0;
        while !shows(&screen) {
            assert!(tries < 400, "the terminal does not show {what}:\n{screen}");
            tries += 1;
            thread::sleep(Duration::from_millis(50));
            screen = self.screen();
        }
        screen
    }

    #[track_caller]
    fn expect_text(&self, text: &str) -> String {
        self.expect(&format!("{text:?}"), |screen| screen.contains(text))
    }

    /// Checks that ka top has ended with this status, and that the terminal is as it was before.
    #[track_caller]
    fn expect_end(&self, status: i32, before: &Modes) {
        self.expect_text("a line from before");
        self.run("echo \"=$?=\"");
        self.expect_text(&format!("={status}="));
        assert_eq!(*before, Modes::of(self));
        let screen = self.screen();
        assert!(screen.contains("a line from before"), "the screen is not restored:\n{screen}");
    }

    /// Returns the PID of ka-top.
    fn view(&self) -> i32 {
        let shell: i32 = self.format("#{pane_pid}").parse().unwrap();
        let mut found = Vec::new();
        eventually("ka-top runs", || {
            let is_view = |pid: &i32| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "ka-top\n")
            };
            found = process::children(shell).into_iter().filter(is_view).collect();
            !found.is_empty()
        });
        found[0]
    }
}

impl Drop for Pane {
    fn drop(&mut self) {
        let _ = self.tmux().arg("kill-server").stderr(Stdio::null()).status();
    }
}

/// The modes of a terminal: those of its line discipline, and those of its screen.
#[derive(Debug, PartialEq, Eq)]
struct Modes {
    line: String,
    screen: String,
}

impl Modes {
    fn of(pane: &Pane) -> Self {
        let file = pane.folder.join("modes");
        let _ = fs::remove_file(&file);
        pane.run(&format!("stty -g >{}", file.display()));
        let read = || fs::read_to_string(&file).unwrap_or_default();
        eventually("stty prints the modes", || read().ends_with('\n'));
        pane.expect("the prompt", |screen| screen.trim_end().ends_with('$'));
        Self { line: read(), screen: pane.format("#{alternate_on} #{cursor_flag} #{keypad_flag}") }
    }
}

/// Opens a terminal with a line on it, and returns its modes.
fn marked_pane() -> (Pane, Modes) {
    let pane = Pane::open(80, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("echo a line from before");
    pane.expect("the line", |screen| screen.contains("\na line from before"));
    let modes = Modes::of(&pane);
    (pane, modes)
}

fn start_holder(args: &[&str]) -> Holder {
    Holder::start(bare(holder()).args(args))
}

/// Returns the lines of the table, without the heading.
fn rows(screen: &str) -> Vec<&str> {
    let mut lines = screen.lines().skip_while(|line| !line.trim_start().starts_with("PROCESS")).skip(1);
    lines.by_ref().take_while(|line| line.contains('/') || line.starts_with('-')).collect()
}

#[test]
fn sockets_of_a_namespace_are_shown_and_refreshed() {
    if !in_own_namespaces("sockets_of_a_namespace_are_shown_and_refreshed") {
        return;
    }
    let mut holder = start_holder(&["keepalive"]);
    let pane = Pane::open(120, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    let screen = pane.expect_text("3 sockets: 1 on, 2 off");
    assert!(screen.starts_with("ka top  every 1s, by attention, 1 of 3\n"), "{screen}");
    let rows = rows(&screen);
    assert_eq!(rows.len(), 3, "{screen}");
    let name = format!("/{} ", holder.pid());
    let port = format!("127.0.0.1:{}", holder.port);
    for row in &rows {
        assert!(row.contains(&name) && row.contains(&port), "{row}");
    }
    // Sockets with a risk come first.
    for row in &rows[..2] {
        assert!(row.ends_with(" off") && row.contains("  7200s"), "{screen}");
    }
    assert!(rows[2].contains("  on ") && rows[2].contains("  10s     5s    2"), "{screen}");
    holder.open();
    pane.expect_text("5 sockets: 2 on, 3 off");
}

#[test]
fn keys_sort_filter_and_select() {
    if !in_own_namespaces("keys_sort_filter_and_select") {
        return;
    }
    let first = start_holder(&["keepalive"]);
    let second = start_holder(&[]);
    let pane = Pane::open(100, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    pane.expect_text("6 sockets: 1 on, 5 off");

    pane.press(&["s"]);
    let screen = pane.expect_text("by process,");
    let pids = |screen: &str| -> Vec<i32> {
        let pid = |row: &&str| row.split(['/', ' ']).nth(1).unwrap().parse().unwrap();
        rows(screen).iter().map(pid).collect()
    };
    let [low, high] = [first.pid(), second.pid()];
    assert_eq!(pids(&screen), [low, low, low, high, high, high]);
    pane.press(&["R"]);
    let screen = pane.expect_text("by process, reversed");
    assert_eq!(pids(&screen), [high, high, high, low, low, low]);
    pane.press(&["R", "S"]);
    pane.expect_text("by attention,");

    // A number matches a port or a PID, and the text takes effect while the user types it.
    pane.press(&["/"]);
    pane.expect_text("filter: _");
    succeed(pane.tmux().args(["send-keys", "-l", &second.port.to_string()]));
    pane.expect_text("3 of 6 sockets listed: 3 off. Not listed: 1 on, 2 off");
    pane.press(&["Enter", "/"]);
    succeed(pane.tmux().args(["send-keys", "-l", " LISTEN"]));
    let screen = pane.expect_text("1 of 6 sockets listed: 1 off");
    assert_eq!(pids(&screen), [high]);
    // Esc restores the filter from before.
    pane.press(&["Escape"]);
    pane.expect_text(&format!("filter \"{}\", ", second.port));
    pane.press(&["Escape"]);
    pane.expect_text("6 sockets: 1 on, 5 off");
    pane.press(&["r"]);
    pane.expect_text("5 of 6 sockets listed: 5 off. Not listed: 1 on");
    pane.press(&["r", "/"]);
    succeed(pane.tmux().args(["send-keys", "-l", &format!("{low} on")]));
    let screen = pane.expect_text("1 of 6 sockets listed: 1 on. Not listed: 5 off");
    assert_eq!(pids(&screen), [low]);
    pane.press(&["Enter", "Escape"]);
    // A terminal sends Alt-G as Escape and G.
    pane.expect_text("6 sockets: 1 on, 5 off");
    pane.press(&["G"]);
    pane.expect_text("by attention, 6 of 6");
    pane.press(&["Up"]);
    pane.expect_text("by attention, 5 of 6");
    pane.press(&["?"]);
    let help = pane.expect_text("Keys of ka top");
    assert!(help.contains("│ q       quit, also with Ctrl-C"), "{help}");
}

#[test]
fn the_selection_stays_on_its_socket() {
    if !in_own_namespaces("the_selection_stays_on_its_socket") {
        return;
    }
    let mut first = start_holder(&["keepalive"]);
    let pane = Pane::open(100, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    pane.expect_text("by attention, 1 of 3");
    pane.press(&["G"]);
    pane.expect_text("by attention, 3 of 3");
    // Each connection has an end without keepalive, which comes before the selected one.
    first.open();
    let place = |screen: &str| {
        let counts = screen.split_once("attention, ")?.1.lines().next()?;
        let (place, all) = counts.trim_end().split_once(" of ")?;
        Some((place.parse::<u32>().ok()?, all.parse::<u32>().ok()?))
    };
    pane.expect("place 4 or 5 of 5", |screen| matches!(place(screen), Some((4 | 5, 5))));
}

#[test]
fn a_pause_keeps_the_list() {
    if !in_own_namespaces("a_pause_keeps_the_list") {
        return;
    }
    let mut holder = start_holder(&[]);
    let pane = Pane::open(80, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top --interval 200ms");
    pane.expect_text("3 sockets: 0 on, 3 off");
    pane.press(&["Space"]);
    pane.expect_text("PAUSED");
    holder.open();
    // Without the pause, the view would refresh ten times meanwhile.
    thread::sleep(Duration::from_secs(2));
    assert!(pane.screen().contains("3 sockets: 0 on, 3 off"), "{}", pane.screen());
    pane.press(&["Space"]);
    let screen = pane.expect_text("5 sockets: 0 on, 5 off");
    assert!(!screen.contains("PAUSED"), "{screen}");
}

#[test]
fn the_view_fits_the_terminal() {
    if !in_own_namespaces("the_view_fits_the_terminal") {
        return;
    }
    let holder = start_holder(&[]);
    let pane = Pane::open(80, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    let check = |width: usize, height: usize, columns: &[&str]| {
        let screen = pane.expect(&format!("{columns:?} in {width} columns"), |screen| {
            let lines: Vec<_> = screen.lines().collect();
            let head = lines.get(2).unwrap_or(&"").split_whitespace().skip(1);
            // A column without values is shown only if there is room.
            let head: Vec<_> =
                head.filter(|name| !["TIMEOUT", "RTO_MAX", "NEXT", "LOST"].contains(name)).collect();
            head == columns && lines.get(height - 1).is_some_and(|line| line.starts_with("q quit"))
        });
        assert_eq!(rows(&screen).len(), 3, "{screen}");
        for row in rows(&screen) {
            assert!(row.contains(&format!("/{}", holder.pid())), "{row}");
            assert!(row.contains(&holder.port.to_string()), "{row}");
            assert!(row.chars().count() <= width && row.ends_with("off"), "{row}");
        }
    };
    check(80, 24, &["LOCAL", "PEER", "KEEP", "IDLE", "INTVL", "CNT", "RISK"]);
    pane.resize(120, 40);
    check(120, 40, &["FD", "STATE", "LOCAL", "PEER", "KEEP", "IDLE", "INTVL", "CNT", "RISK"]);
    pane.resize(60, 15);
    check(60, 15, &["LOCAL", "PEER", "KEEP", "RISK"]);
    pane.resize(80, 24);
    check(80, 24, &["LOCAL", "PEER", "KEEP", "IDLE", "INTVL", "CNT", "RISK"]);
}

#[test]
fn a_small_terminal_is_named_as_the_reason() {
    if !in_own_namespaces("a_small_terminal_is_named_as_the_reason") {
        return;
    }
    let pane = Pane::open(59, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    pane.expect_text("ka top needs 60x8, this is 59x24. q quits");
    pane.resize(60, 8);
    pane.expect_text("0 sockets: 0 on, 0 off");
    pane.resize(60, 7);
    pane.expect_text("ka top needs 60x8, this is 60x7. q quits");
    pane.press(&["q"]);
    pane.expect("the shell", |screen| screen.trim_end().ends_with('$'));
    pane.run("echo \"=$?=\"");
    pane.expect_text("=0=");
}

#[test]
fn the_end_restores_the_terminal() {
    if !in_own_namespaces("the_end_restores_the_terminal") {
        return;
    }
    for end in ["q", "C-c"] {
        let (pane, modes) = marked_pane();
        pane.run("KA top");
        let screen = pane.expect_text("0 sockets");
        assert!(!screen.contains("a line from before"), "{screen}");
        pane.press(&[end]);
        pane.expect_end(0, &modes);
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        let (pane, modes) = marked_pane();
        pane.run("KA top");
        pane.expect_text("0 sockets");
        process::kill(pane.view(), signal);
        pane.expect_end(0, &modes);
    }
}

#[test]
fn a_stop_gives_the_terminal_back() {
    if !in_own_namespaces("a_stop_gives_the_terminal_back") {
        return;
    }
    for by_key in [true, false] {
        let (pane, modes) = marked_pane();
        pane.run("set -m");
        pane.run("KA top");
        pane.expect_text("0 sockets");
        let view = pane.view();
        if by_key {
            pane.press(&["C-z"]);
        } else {
            process::kill(view, libc::SIGTSTP);
        }
        pane.expect_text("a line from before");
        eventually("ka-top is stopped", || process::state(view) == Some('T'));
        assert_eq!(modes, Modes::of(&pane));
        pane.run("fg");
        pane.expect_text("0 sockets");
        pane.press(&["s"]);
        pane.expect_text("by process");
        pane.press(&["q"]);
        pane.expect_end(0, &modes);
    }
}

#[test]
fn the_policy_is_applied_to_the_selected_socket_after_a_question() {
    if !in_own_namespaces("the_policy_is_applied_to_the_selected_socket_after_a_question") {
        return;
    }
    let mut holder = start_holder(&[]);
    holder.open();
    let pane = Pane::open(100, 24, &["LC_ALL=C.UTF-8"]);
    pane.run(&format!("KA top -p 77,7,3 {}", holder.pid()));
    pane.expect_text("5 sockets: 0 on, 5 off");
    // Another key than y changes nothing.
    pane.press(&["G", "a"]);
    pane.expect_text("Apply the policy to this socket?");
    pane.press(&["n"]);
    pane.expect_text("nothing was changed");
    assert!(holder.look().iter().all(|options| !options.on));
    pane.press(&["a"]);
    let question = pane.expect_text("Apply the policy to this socket?");
    let command = question.lines().find_map(|line| line.split_once("command: ")).unwrap().1;
    let command = command.trim_end_matches([' ', '│', 'o', 'f']).trim_end();
    assert!(question.contains("policy:  77,7,3 (mode force)"), "{question}");
    assert!(command.starts_with("ka attach -p 77,7,3 --mode force --port "), "{command}");
    assert!(command.ends_with(&format!(" {}", holder.pid())), "{command}");
    let fd: i32 = question.split_once(" fd ").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
    pane.press(&["y"]);
    pane.expect_text("set from off to 77,7,3");
    for options in holder.look() {
        assert_eq!(options.on, options.fd == fd, "{options:?}");
        if options.fd == fd {
            assert_eq!(options.timers[..3], [77, 7, 3]);
        }
    }
    pane.expect_text("5 sockets: 1 on, 4 off");
    pane.press(&["q"]);
    pane.expect("the shell", |screen| screen.trim_end().ends_with('$'));
    // The command that the question named sets the same socket.
    let dry = command.replacen("ka attach", "KA attach --dry-run", 1);
    pane.run(&format!("clear; {dry} --verbose"));
    let screen = pane.expect_text("unchanged, 0 failed");
    assert!(screen.contains(&format!("fd {fd} ")), "{screen}");
}

#[test]
fn the_selected_connection_is_probed() {
    if !in_own_namespaces("the_selected_connection_is_probed") {
        return;
    }
    let mut holder = start_holder(&[]);
    let before = holder.look();
    let pane = Pane::open(120, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    pane.expect_text("3 sockets");
    // The listener comes first.
    pane.press(&["p"]);
    pane.expect_text("this socket is not a connection, so ka cannot probe it");
    let probes = counter("TcpExtTCPKeepAlive");
    // A segment within the last second would be an answer, without a probe.
    thread::sleep(Duration::from_millis(1500));
    pane.press(&["Down", "p"]);
    let screen = pane.expect_text(": answered after ");
    assert_eq!(counter("TcpExtTCPKeepAlive"), probes + 1, "other connections were probed too");
    let answered = screen.lines().rev().find(|line| line.contains("answered after")).unwrap();
    let peer = answered.split(": ").next().unwrap();
    let screen = pane.expect("the result in a row", |screen| {
        rows(screen).iter().any(|row| row.split_whitespace().any(|word| word.ends_with("ms")))
    });
    let row = rows(&screen).into_iter().find(|row| row.contains("ms ")).unwrap();
    assert_eq!(row.split_whitespace().nth(4), Some(peer), "{screen}");
    assert_eq!(holder.look(), before);
    // The peer becomes silent: its packets are lost.
    succeed(bare("ip").args(["link", "set", "lo", "down"]));
    thread::sleep(Duration::from_millis(1500));
    pane.press(&["p"]);
    pane.expect_text(": silent: no answer within 2s");
    pane.expect("the result in a row", |screen| rows(screen).iter().any(|row| row.contains(" silent ")));
    succeed(bare("ip").args(["link", "set", "lo", "up"]));
}

#[test]
fn connections_that_end_abnormally_are_listed() {
    if !in_own_namespaces("connections_that_end_abnormally_are_listed") {
        return;
    }
    // The end `a` gets a reset, because the end `b` is closed with SO_LINGER 0.
    let code = "import socket, struct, sys, time\n\
        l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()\n\
        a = socket.create_connection(l.getsockname()); b, _ = l.accept()\n\
        print(l.getsockname()[1], flush=True); sys.stdin.readline()\n\
        b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); b.close()\n\
        time.sleep(1000)";
    let mut program = bare("python3");
    let mut program =
        program.args(["-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let port = Lines::new("the program", program.stdout.take().unwrap()).expect("its port");
    let pane = Pane::open(120, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    let screen = pane.expect_text("DEATHS since the start: 0");
    assert!(rows(&screen).len() == 3, "{screen}");
    // ka watch learns the owners of connections about once a second.
    thread::sleep(Duration::from_secs(3));
    drop(program.stdin.take());
    let screen = pane.expect_text("DEATHS since the start: 1");
    let line = screen.lines().skip_while(|line| !line.starts_with("DEATHS")).nth(1).unwrap();
    let expected = format!("/{} lost 127.0.0.1:{port}: reset by the peer or a middlebox", program.id());
    assert!(line.contains(&expected), "{line:?} lacks {expected:?}");
    program.kill().unwrap();
    program.wait().unwrap();
}

#[test]
fn without_a_policy_the_view_still_shows_the_sockets() {
    if !in_own_namespaces("without_a_policy_the_view_still_shows_the_sockets") {
        return;
    }
    let _holder = start_holder(&[]);
    let pane = Pane::open(120, 24, &["LC_ALL=C.UTF-8", "KA_POLICY=off"]);
    pane.run("KA top");
    pane.expect_text("3 sockets");
    pane.press(&["a"]);
    pane.expect_text("KA_POLICY=off, in the environment or /etc/ka.conf, disables ka");
}

#[test]
fn missing_rights_are_named_in_the_view() {
    if !is_root() {
        return skip("only root can run ka as another user");
    }
    if !in_own_namespaces("missing_rights_are_named_in_the_view") {
        return;
    }
    let _holder = start_holder(&[]);
    let pane = Pane::open(100, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("setpriv --reuid 65534 --regid 65534 --clear-groups KA top");
    let screen = pane.expect_text(
        "the process or the settings of 3 sockets are unknown: run ka as root (needs CAP_SYS_PTRACE)",
    );
    // No row has a process, so the view leaves out this column.
    assert_eq!(screen.lines().filter(|line| line.contains("127.0.0.1:")).count(), 3, "{screen}");
    pane.press(&["a"]);
    pane.expect_text("the process of this socket is unknown: run ka as root (needs CAP_SYS_PTRACE)");
}

/// While a program holds the lock of its socket, a listing takes more than 2 s.
#[test]
fn keys_work_while_a_listing_is_blocked() {
    if !is_root() {
        return skip("only root looks into the processes of other users");
    }
    if !in_own_namespaces("keys_work_while_a_listing_is_blocked") {
        return;
    }
    let folder = PublicFolder::new("locker");
    let locker = folder.join("locker");
    copy_program(compile(cc().arg("-pthread"), &source("locker"), Linkage::Nothing), &locker);
    let mut locker = bare(&locker);
    let mut locker =
        locker.args(["65534", "evil", "1"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    if Lines::new("locker", locker.stdout.take().unwrap()).next().is_none() {
        locker.wait().unwrap();
        return skip("userfaultfd(2) does not handle page faults of the kernel here");
    }
    let pane = Pane::open(120, 24, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top --interval 100ms");
    pane.expect_text("did not answer within 2 s (a program holds its lock)");
    // One listing after the other is blocked now.
    let mut slowest = Duration::ZERO;
    for order in ["process", "state", "local address", "peer", "idle", "next probe", "lost probes"] {
        let pressed = Instant::now();
        pane.press(&["s"]);
        pane.expect_text(&format!("by {order},"));
        slowest = slowest.max(pressed.elapsed());
        thread::sleep(Duration::from_millis(300));
    }
    assert!(slowest < Duration::from_millis(1500), "a key took {slowest:?}");
    locker.kill().unwrap();
    locker.wait().unwrap();
}

/// A process with this name, as a Python literal, and a listener on this address.
fn named_listener(name: &str, family: &str, address: &str) -> WaitingProgram {
    let code = format!(
        "import ctypes, socket, sys\n\
         ctypes.CDLL(None).prctl(15, {name})\n\
         s = socket.socket(socket.{family}); s.bind(('{address}', 0)); s.listen()\n\
         print('stay', flush=True); sys.stdin.read()"
    );
    WaitingProgram::start(bare("python3").args(["-c", &code]))
}

#[test]
fn names_and_addresses_of_any_kind_fit() {
    if !in_own_namespaces("names_and_addresses_of_any_kind_fit") {
        return;
    }
    let control = named_listener("b'a\\x1b[31mb\\x07'", "AF_INET", "127.0.0.1");
    let wide = named_listener("'界界界界界'.encode()", "AF_INET", "127.0.0.1");
    let pane = Pane::open(60, 15, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    pane.expect_text("2 sockets");
    pane.resize(120, 24);
    let screen = pane.expect_text("a\\u{1b}[31mb\\u{7}");
    assert!(screen.contains(&format!("界界界界界/{}", wide.pid())), "{screen}");
    let columns: Vec<_> = rows(&screen).iter().map(|row| row.rfind("  off").map(|_| row.len())).collect();
    assert_eq!(columns.len(), 2, "{screen}");
    drop((control, wide));
    if !has_ipv6() {
        return skip("no IPv6");
    }
    succeed(bare("ip").args(["address", "add", "2001:db8:1111:2222:3333:4444:5555:6666/128", "dev", "lo"]));
    let six = named_listener("b'six'", "AF_INET6", "2001:db8:1111:2222:3333:4444:5555:6666");
    for (width, local) in [(120, "[2001:db8:1111:2222:3333:4444:5555:6666]:"), (60, "[2001:")] {
        pane.resize(width, 15);
        let screen = pane.expect(&format!("the listener in {width} columns"), |screen| {
            rows(screen).iter().any(|row| row.contains(&format!("six/{}", six.pid())) && row.contains(local))
        });
        let row = rows(&screen)[0];
        assert!(row.ends_with("off") && row.chars().count() <= usize::from(width), "{row}");
    }
}

#[test]
fn the_view_has_no_colours_and_no_unicode_if_the_environment_asks_for_it() {
    if !in_own_namespaces("the_view_has_no_colours_and_no_unicode_if_the_environment_asks_for_it") {
        return;
    }
    let _holder = start_holder(&[]);
    let _wide = named_listener("'界'.encode()", "AF_INET", "127.0.0.1");
    let coloured = |pane: &Pane| {
        let screen = stdout(pane.tmux().args(["capture-pane", "-p", "-e"]));
        ["\u{1b}[31m", "38;5;1m"].iter().any(|red| screen.contains(red))
    };
    let pane = Pane::open(60, 15, &["LC_ALL=C.UTF-8"]);
    pane.run("KA top");
    pane.expect_text("4 sockets");
    assert!(coloured(&pane), "{}", pane.screen());
    let pane = Pane::open(60, 15, &["LC_ALL=C", "NO_COLOR=1"]);
    pane.run("KA top");
    let screen = pane.expect_text("4 sockets");
    assert!(!coloured(&pane), "{screen}");
    assert!(screen.is_ascii() && screen.contains("\\u{754c}"), "{screen}");
    pane.press(&["?"]);
    let screen = pane.expect_text("+Keys of ka top-");
    assert!(screen.is_ascii(), "{screen}");
}

#[test]
fn without_a_terminal_ka_top_names_the_command_that_works() {
    let (status, out, err) = outcome(ka().args(["top", "--port", "5432", "1"]));
    assert_eq!((status, out.as_str()), (2, ""));
    let message =
        "ka: top: standard input is not a terminal; to print the sockets once, use ka ls --port 5432 1\n";
    assert_eq!(err, message);
    // ka-top checks it too.
    let (status, out, direct) = outcome(view().args(["--port", "5432", "1"]));
    assert_eq!((status, out.as_str(), direct), (2, "", err));
    let (status, _, err) = outcome(
        Command::new("script")
            .args(["-qec"])
            .arg(format!("TERM=dumb {} top </dev/tty; echo \"=$?=\" >&2", release().join("ka").display()))
            .arg("/dev/null"),
    );
    assert_eq!((status, err.as_str()), (0, ""));
}

/// Returns ka-top, started as ka starts it.
fn view() -> Command {
    let mut command = bare(release().join("ka-top"));
    command.arg(env!("CARGO_PKG_VERSION"));
    command
}

#[test]
fn programs_of_another_version_are_rejected() {
    let own = env!("CARGO_PKG_VERSION");
    for (program, title) in [("ka-top", "ka: top"), ("ka-metrics", "ka-metrics")] {
        let (status, out, err) = outcome(bare(release().join(program)).arg("0.1.9"));
        assert_eq!((status, out.as_str()), (2, ""), "{program}: {err}");
        let message = format!(
            "{title}: ka is version 0.1.9, but {program} is version {own}: install both from the same release of ka\n"
        );
        assert_eq!(err, message);
        // A user has started the program.
        let (status, out, err) = outcome(&mut bare(release().join(program)));
        assert_eq!((status, out.as_str()), (2, ""), "{program}: {err}");
        assert!(err.starts_with(&format!("{title}: this program is a part of ka: use ka ")), "{err}");
    }
}

#[test]
fn wrong_arguments_are_explained() {
    for (args, reason) in [
        (&["abc"][..], "must be a PID"),
        (&["--port", "0"], "must be a port number, 1..65535"),
        (&["--interval", "0"], "must be 1..4294967295 ms"),
        (&["--interval", "soon"], "must be a time, as 60, 60s or 5m"),
        (&["-p", "60,10"], "--policy"),
        (&["--mode", "strict"], "force, floor, default"),
        (&["--json"], "--json"),
    ] {
        let mut top = ka();
        top.arg("top");
        for mut command in [top, view()] {
            let (status, out, err) = outcome(command.args(args));
            assert_eq!((status, out.as_str()), (2, ""), "{command:?}: {err}");
            assert!(err.contains(reason), "{command:?}: {err}");
        }
    }
}

/// Runs a command on a terminal, without a view, and returns what it prints.
fn on_terminal(command: &str) -> String {
    // A view would wait for a key without end.
    let mut script = bare("timeout");
    script.args(["30", "script", "-qec", command, "/dev/null"]).stdin(Stdio::null());
    String::from_utf8(script.output().unwrap().stdout).unwrap()
}

#[test]
fn failures_before_the_view_are_explained() {
    let folder = scratch("lonely");
    fs::create_dir_all(&folder).unwrap();
    let lonely = folder.join("ka");
    copy_program(release().join("ka"), &lonely);
    let run =
        |ka: &Path, rest: &str| on_terminal(&format!("{rest} {} top 999999999; echo =$?=", ka.display()));
    if !Path::new("/usr/lib/ka/ka-top").exists() {
        let out = run(&lonely, "TERM=xterm");
        assert!(out.contains("ka: top: cannot find ka-top: looked for "), "{out}");
        assert!(out.contains("install ka again") && out.contains("=2="), "{out}");
    }
    let ka = release().join("ka");
    let out = run(&ka, "TERM=dumb");
    assert!(
        out.contains(
            "ka: top: TERM=\"dumb\": this terminal cannot show a live view; to print the sockets once"
        ),
        "{out}"
    );
    assert!(out.contains("use ka ls 999999999") && out.contains("=2="), "{out}");
    // The first listing fails before the terminal is changed.
    let out = run(&ka, "TERM=xterm");
    assert!(out.contains("ka: top: process 999999999: "), "{out}");
    assert!(out.contains("=2=") && !out.contains("\u{1b}[?1049h"), "{out}");
}
