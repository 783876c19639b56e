//! Tests the claims of SECURITY.md about the command, against attackers: reused PIDs, names with control characters,
//! environments that a caller controls, and places where others can write.

mod command;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use command::{Holder, as_nobody, bare, holder, ka, outcome};
use ka_test::artifact::{release, shim};
use ka_test::child::{Running, stdout, succeed};
use ka_test::log::skip;
use ka_test::namespace::{in_own_namespaces, in_own_network_namespace, is_root, with_own_etc};
use ka_test::path::{PublicFolder, copy_program, scratch, write_script};
use ka_test::process::{children, signal_child};
use ka_test::wait::eventually;
use serde_json::Value;

/// Runs the test in namespaces in which it can choose the PID of the next process.
fn in_namespaces_with_chosen_pids(test: &str) -> bool {
    if !Path::new("/proc/sys/kernel/ns_last_pid").exists() {
        skip("this kernel cannot choose the next PID (CONFIG_CHECKPOINT_RESTORE)");
        return false;
    }
    in_own_namespaces(test)
}

/// Starts a holder with exactly this PID.
fn holder_numbered(number: i32, command: &mut Command) -> Holder {
    for _ in 0..100 {
        fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).unwrap();
        let holder = Holder::start(command);
        if holder.pid() == number {
            return holder;
        }
    }
    panic!("no process got PID {number}");
}

/// Starts ka, which strace delays for some seconds before or after each `pidfd_open`.
fn start_delayed(when: &str, args: &[&str]) -> Child {
    let mut strace = bare("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=pidfd_open", "-e"]);
    strace.arg(format!("inject=pidfd_open:delay_{when}=4000000")).arg(release().join("ka")).args(args);
    let child = strace.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().try_into().unwrap();
    eventually("ka is at pidfd_open", || {
        children(pid).into_iter().any(|pid| {
            let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            call.starts_with(&format!("{} ", libc::SYS_pidfd_open))
        })
    });
    child
}

/// Returns the output of ka when it ends. Returns `None` if ka had ended before, because the machine was too slow for
/// the test.
fn said(mut ka: Child) -> Option<(i32, String, String)> {
    if ka.try_wait().unwrap().is_some() {
        return None;
    }
    let output = ka.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Some((output.status.code().unwrap(), text(output.stdout), text(output.stderr)))
}

/// After ka has opened a pidfd, but before it has examined the process, that process ends, and another gets its PID.
#[test]
fn a_reused_pid_is_not_mistaken_for_the_process() {
    const NUMBER: i32 = 3000;
    if !in_namespaces_with_chosen_pids("a_reused_pid_is_not_mistaken_for_the_process") {
        return;
    }
    for _ in 0..5 {
        let meant = holder_numbered(NUMBER, &mut Command::new(holder()));
        let ka = start_delayed("exit", &["attach", "3000"]);
        drop(meant);
        let mut other = holder_numbered(NUMBER, &mut Command::new(holder()));
        if let Some((status, out, err)) = said(ka) {
            assert!(other.look().iter().all(|options| !options.on), "another process was set: {out}{err}");
            assert_eq!(status, 0, "{out}{err}");
            assert!(
                out.ends_with("0 sockets set to 60,10,6 (mode force), 0 unchanged, 0 failed\n"),
                "{out}{err}"
            );
            return;
        }
    }
    panic!("five times, ka was done before a process could be replaced");
}

/// The same happens while ka follows a process.
#[test]
fn follow_ends_with_the_process_and_ignores_a_reused_pid() {
    const NUMBER: i32 = 3000;
    if !in_namespaces_with_chosen_pids("follow_ends_with_the_process_and_ignores_a_reused_pid") {
        return;
    }
    let mut meant = holder_numbered(NUMBER, &mut Command::new(holder()));
    let mut ka = ka();
    let mut follower = Running::start(ka.args(["attach", "--follow", "--interval", "100ms", "3000"]));
    eventually("the process is set", || meant.look().iter().all(|options| options.on));
    signal_child(&follower.0, libc::SIGSTOP);
    drop(meant);
    let mut other = holder_numbered(NUMBER, &mut Command::new(holder()));
    signal_child(&follower.0, libc::SIGCONT);
    eventually("ka ends with the process that it follows", || follower.0.try_wait().unwrap().is_some());
    assert!(other.look().iter().all(|options| !options.on));
}

/// ka finds that a process belongs to the user. Before ka opens it, a process of root gets the PID.
#[test]
fn a_process_of_another_user_is_not_set_by_user() {
    const NUMBER: i32 = 3000;
    if !in_namespaces_with_chosen_pids("a_process_of_another_user_is_not_set_by_user") {
        return;
    }
    if !is_root() {
        skip("only root can start processes of several users");
        return;
    }
    let folder = PublicFolder::new("numbers");
    let program = folder.join("holder");
    copy_program(holder(), &program);
    for _ in 0..5 {
        let meant = holder_numbered(NUMBER, &mut as_nobody(&Command::new(&program)));
        let ka = start_delayed("enter", &["attach", "--user", "nobody"]);
        drop(meant);
        let mut other = holder_numbered(NUMBER, &mut Command::new(&program));
        if let Some((status, out, err)) = said(ka) {
            assert!(other.look().iter().all(|options| !options.on), "root's process was set: {out}{err}");
            assert_eq!(
                (status, out.as_str()),
                (0, "0 sockets set to 60,10,6 (mode force), 0 unchanged, 0 failed\n"),
                "{err}"
            );
            return;
        }
    }
    panic!("five times, ka was done before a process could be replaced");
}

/// Returns the targets of all descriptors that a program inherits, except those of this test.
fn descriptors(command: &mut Command) -> Vec<String> {
    const LOOK: &str = "import os\n\
        for fd in sorted(map(int, os.listdir('/proc/self/fd'))):\n\
        \x20   try: print(fd, os.readlink(f'/proc/self/fd/{fd}').split(':')[0])\n\
        \x20   except FileNotFoundError: pass";
    let mut shell = bare("sh");
    shell.args(["-c", "exec 7</etc/passwd; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args()).args(["python3", "-c", LOOK]);
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    stdout(shell.stdin(Stdio::null())).lines().map(str::to_owned).collect()
}

#[test]
fn no_way_leaves_the_program_a_descriptor() {
    let alone = descriptors(&mut bare("env"));
    assert!(alone.contains(&"7 /etc/passwd".to_owned()), "{alone:?}");
    let log = scratch("log");
    for way in ["preload", "seccomp", "cgroup"] {
        let mut run = ka();
        run.env("KA_LOG", &log).args(["run", "--via", way, "--"]);
        let refused = outcome(ka().args(["run", "--via", way, "--", "true"]));
        if way == "cgroup" && refused.0 == 125 {
            skip(&format!("ka run --via cgroup: {}", refused.2));
            continue;
        }
        assert_eq!(descriptors(&mut run), alone, "{way}");
    }
    // The shim leaves no descriptor open either, while a program uses sockets and then executes another.
    let program = "import os, socket, sys\n\
        l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname())\n\
        os.execvp(sys.argv[1], sys.argv[1:])";
    let mut run = ka();
    run.env("KA_LOG", &log).args(["run", "--via", "preload", "--", "python3", "-c", program]);
    assert_eq!(descriptors(&mut run), alone);
    assert!(fs::read_to_string(log).unwrap().contains("fd 3: set"));
}

/// Uses the real sudo, for a user who may keep KA_PRELOAD.
#[test]
fn a_shim_of_the_caller_is_not_preloaded_under_sudo() {
    if !is_root() {
        skip("only root may change who may use sudo");
        return;
    }
    let folder = PublicFolder::new("sudo");
    let theirs = folder.join("theirs");
    fs::create_dir(&theirs).unwrap();
    for path in [folder.join("ours.so"), theirs.join("shim.so")] {
        copy_program(shim(), path);
    }
    // The file belongs to root, but another user can replace it in its folder.
    std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
    symlink(folder.join("ours.so"), theirs.join("link.so")).unwrap();
    let script = format!(
        "printf 'Defaults env_keep += KA_PRELOAD\\nnobody ALL=(ALL) NOPASSWD: ALL\\n' > /etc/sudoers\n\
         for shim in ours.so theirs/shim.so theirs/link.so; do\n\
         \x20   KA_PRELOAD={}/$shim setpriv --reuid 65534 --regid 65534 --clear-groups \
         sudo -n {} run -v -- sh -c 'echo \"$LD_PRELOAD\"' 2>&1\n\
         done",
        folder.display(),
        release().join("ka").display(),
    );
    let output = with_own_etc(&script);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let lines: Vec<_> = said.lines().collect();
    let ours = folder.join("ours.so").display().to_string();
    // If the host name has no address, as in a container, sudo prints a warning.
    let is_words = |line: &&&str| line.starts_with("ka:") || line.starts_with("sudo:");
    let shown: Vec<_> = lines.iter().filter(|line| !is_words(line)).collect();
    // ka resolves the link and preloads its target, which belongs to root.
    assert_eq!(shown, [&ours, &ours], "{said}");
    let why = format!("{} must belong to root, and only root may be able to write it", theirs.display());
    assert_eq!(lines.iter().filter(|line| line.contains(&why)).count(), 1, "{said}");
}

/// Tests the variables of other tools that mark the environment as another user's, and paths that others can write.
#[test]
fn a_shim_and_its_folders_must_belong_to_root() {
    if !is_root() {
        skip("only root can create a shim that belongs to root");
        return;
    }
    let folder = PublicFolder::new("shim");
    let below = folder.join("below");
    fs::create_dir(&below).unwrap();
    let shim = below.join("shim.so");
    copy_program(ka_test::artifact::shim(), &shim);
    let run = |caller: &str, mode: u32, path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let result = outcome(ka().env("KA_PRELOAD", &shim).env(caller, "1000").args(["run", "true"]));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        (result.0, result.2)
    };
    for caller in ["SUDO_UID", "DOAS_USER", "PKEXEC_UID"] {
        assert_eq!(run(caller, 0o755, &shim), (0, String::new()));
        for path in [&shim, &below, &*folder] {
            let (status, err) = run(caller, 0o777, path);
            let why = format!(
                "KA_PRELOAD={}: {} must belong to root, and only root may be able to write it, because {caller} is set",
                shim.display(),
                path.display()
            );
            assert!(status == 125 && err.contains(&why), "{err}");
        }
    }
    // In a folder with the sticky bit, as /tmp, other users cannot replace a file of root.
    assert_eq!(run("SUDO_UID", 0o1777, &below), (0, String::new()));
}

/// If ka has more rights than its user, which it does not need, it ignores KA_PRELOAD.
#[test]
fn a_privileged_ka_ignores_ka_preload() {
    if !is_root() {
        skip("only root may give a program more rights");
        return;
    }
    let folder = PublicFolder::new("rights");
    let (setuid, capable, shim) = (folder.join("setuid"), folder.join("capable"), folder.join("shim.so"));
    for program in [&setuid, &capable] {
        copy_program(release().join("ka"), program);
    }
    copy_program(ka_test::artifact::shim(), &shim);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    succeed(Command::new("setcap").arg("cap_net_raw+ep").arg(&capable));
    for program in [&setuid, &capable] {
        let mut run = bare(program);
        run.args(["run", "--via", "preload", "--", "true"]);
        let (status, _, err) = outcome(as_nobody(&run).env("KA_PRELOAD", &shim));
        assert!(status == 125 && err.contains("ka has more privileges than its user"), "{err}");
    }
}

/// A name that would control the terminal of an administrator, and that would end a line or a JSON object.
const HOSTILE: &str = "\u{1b}]0;x\u{7}\u{9b}2J\"},\n\u{202e}";

/// Asserts that no control character has reached the output.
#[track_caller]
fn assert_harmless(text: &str) {
    let orders = |letter: char| {
        letter != '\n'
            && (letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
    };
    assert!(!text.contains(orders), "{text:?}");
}

#[test]
fn control_characters_in_process_names_are_escaped() {
    if !in_own_namespaces("control_characters_in_process_names_are_escaped") {
        return;
    }
    let folder = scratch("names");
    fs::create_dir(&folder).unwrap();
    // The kernel keeps 15 bytes of a process name.
    for name in ["\u{1b}[2J\u{9b}31m\"},\n'", "\u{202e}\u{61c}\u{7f}\r\\) R"] {
        assert!(name.len() <= 15);
        copy_program(holder(), folder.join(name));
        let process = Holder::start(&mut Command::new(folder.join(name)));
        let pid = process.pid().to_string();
        for args in [
            &["ls"][..],
            &["ls", "--pid", &pid],
            &["ls", "--json"],
            &["check", &pid],
            &["check", "--json", &pid],
            &["attach", "-v", &pid],
            &["attach", "--json", "--mode", "floor", &pid],
        ] {
            let (_, out, err) = outcome(ka().args(args));
            assert_harmless(&out);
            assert_harmless(&err);
            assert!(out.contains(&pid), "{args:?}: {out}{err}");
            if args.contains(&"--json") {
                let value: Value = serde_json::from_str(&out).unwrap_or_else(|why| panic!("{why}: {out}"));
                let comm = match args[0] {
                    "ls" => &value[0]["comm"],
                    "attach" => &value["sockets"][0]["comm"],
                    _ => continue,
                };
                assert_eq!(comm, name, "{out}");
            }
        }
    }
}

#[test]
fn control_characters_in_file_names_are_escaped() {
    let folder = scratch("names");
    fs::create_dir(&folder).unwrap();
    let program = folder.join(HOSTILE);
    copy_program(holder(), &program);
    for args in [
        &["check"][..],
        &["check", "--json"],
        &["run", "--via", "cgroup", "--best-effort", "--idle", "0"],
        &["cgroup", "attach"],
        &["cgroup", "ls"],
        &["ls", "--netns"],
    ] {
        let (_, out, err) = outcome(ka().args(args).arg(&program));
        assert_harmless(&out);
        assert_harmless(&err);
        assert!(!out.is_empty() || !err.is_empty(), "{args:?}");
    }
    // The log of the shim has no control characters either, and each line is one event.
    let log = scratch("log");
    let mut run = ka();
    run.env("KA_LOG", &log).args(["run", "--via", "preload", "--"]).arg(&program);
    Holder::start(&mut run).end();
    let text = fs::read_to_string(log).unwrap();
    assert_harmless(&text);
    assert!(text.lines().count() > 0 && text.lines().all(|line| line.contains("] fd ")), "{text}");
}

/// In a bpf filesystem that every user may write, another user has created the folder of ka first. root neither pins
/// anything there, nor removes the targets of links.
#[test]
fn a_pin_folder_of_another_user_is_not_used() {
    const BELOW: &str = "/run/ka-test-cgroups";
    if !is_root() {
        skip("only root attaches programs to cgroups");
        return;
    }
    let mount = format!(
        "mount -t tmpfs none /run && mkdir {BELOW} && mount -t cgroup2 none {BELOW} && mount -t bpf none /sys/fs/bpf"
    );
    // Creates a cgroup without processes.
    let own = format!("{BELOW}/ka-test-pins-{}", std::process::id());
    let ka = release().join("ka");
    let ka = ka.display();
    let script = |before: &str, command: &str| {
        let script = format!(
            "{mount} && mkdir {own} || exit 77; mkdir /run/precious; echo gold >/run/precious/file; chmod 1777 /sys/fs/bpf\n\
             {before}\n{command}; echo status $?; cat /run/precious/file; rmdir {own}"
        );
        let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    let (status, lacks) = script("", &format!("{ka} cgroup ls"));
    if status == Some(77) || !lacks.contains("status 0") {
        skip(&format!("ka cgroup is not available here: {lacks}"));
        return;
    }
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    // The user creates either a folder with a link under each name that ka might remove, or a link in place of the
    // folder.
    let folder = format!(
        "{nobody} mkdir /sys/fs/bpf/ka && {nobody} ln -s /run/precious /sys/fs/bpf/ka/$(stat -c %i {own})_new"
    );
    let link = format!("{nobody} ln -s /run/precious /sys/fs/bpf/ka");
    for before in [folder, link] {
        for command in [format!("attach -d 60 {own}"), "detach --all".to_owned(), format!("detach {own}")] {
            let (_, said) = script(&before, &format!("{ka} cgroup {command}"));
            assert!(said.contains("gold"), "{command}: {said}");
            assert!(said.contains("status 2"), "{command}: {said}");
            let why = "/sys/fs/bpf/ka: it belongs to user 65534 or is writable by others";
            assert!(said.contains(why), "{said}");
        }
        let (_, said) = script(&before, &format!("{ka} cgroup ls"));
        // Other cgroups of this machine may have a policy.
        assert!(
            said.contains("status 0") && !said.contains("/sys/fs/bpf") && said.contains("gold"),
            "{said}"
        );
    }
}

/// ka neither writes through a link nor replaces one. It does not overwrite the files of others.
#[test]
fn persist_overwrites_only_its_own_file() {
    if !in_own_network_namespace("persist_overwrites_only_its_own_file") {
        return;
    }
    let (link, precious) = (scratch("link.conf"), scratch("precious"));
    fs::write(&precious, "gold").unwrap();
    symlink(&precious, &link).unwrap();
    let sysctl = || fs::read_to_string("/proc/sys/net/ipv4/tcp_keepalive_time").unwrap();
    let persist = |path: &Path| {
        let mut command = ka();
        command.args(["defaults", "--set", "60,10,6"]).arg(format!("--persist={}", path.display()));
        outcome(&mut command)
    };
    let is_refused = |path: &Path, why: &str| {
        let (status, _, err) = persist(path);
        assert!(status == 2 && err.contains(why) && err.contains("nothing was set"), "{err}");
        assert_eq!(sysctl(), "7200\n");
    };
    is_refused(&link, "it is a symbolic link");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "gold");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    // ka does not overwrite a file with lines of others, or a file that is not regular.
    is_refused(&precious, "ka did not write line 1: gold");
    fs::write(&precious, "# Written by ka defaults --persist. sysctl.d(5)\n\nnet.ipv4.ip_forward=1\n")
        .unwrap();
    is_refused(&precious, "ka did not write line 3: net.ipv4.ip_forward=1");
    let fifo = scratch("fifo");
    succeed(Command::new("mkfifo").arg(&fifo));
    is_refused(&fifo, "it is not a regular file");
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fs::symlink_metadata(&fifo).unwrap().file_type()));
    // ka may overwrite its own file.
    let own = scratch("own.conf");
    for _ in 0..2 {
        let (status, out, err) = persist(&own);
        assert!(status == 0 && out.contains("sysctl -p "), "{out}{err}");
    }
    assert!(fs::read_to_string(&own).unwrap().contains("net.ipv4.tcp_keepalive_time = 60\n"));
    assert_eq!(sysctl(), "60\n");
}

/// If the loader rejects the path of the shim, ka creates a link. Here another user has created the folders in /tmp
/// and /run first.
#[test]
fn a_link_folder_of_another_user_is_not_used() {
    if !is_root() {
        skip("only root may have a /tmp and a /run of its own");
        return;
    }
    let folder = scratch("a place");
    fs::create_dir(&folder).unwrap();
    for file in [release().join("ka"), shim()] {
        copy_program(&file, folder.join(file.file_name().unwrap()));
    }
    // The mounts hide all of /tmp from ka.
    let run = |before: &str| {
        let script = format!(
            "mkdir /mnt/ka && mount --bind '{}' /mnt/ka && mount -t tmpfs none /tmp && mount -t tmpfs none /run && \
             mkdir '/run/a place' && mount --bind /mnt/ka '/run/a place' && chmod 1777 /tmp && mkdir /tmp/theirs && \
             chown 65534 /tmp/theirs; {before}\n'/run/a place/ka' run -- sh -c 'echo \"$LD_PRELOAD\"' 2>&1; \
             echo status $?; ls -A /tmp/theirs",
            folder.display()
        );
        let mut unshare = Command::new("unshare");
        let wrapped = format!("mount -t tmpfs none /mnt && {script}");
        String::from_utf8(succeed(unshare.args(["--mount", "sh", "-c", &wrapped])).stdout).unwrap()
    };
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    assert!(run("").starts_with("/run/ka/libka_preload-"), "{}", run(""));
    let taken = "mkdir /run/ka && chown 65534 /run/ka;";
    // If the first place does not belong to root alone, ka uses the second. If neither does, ka refuses to run.
    assert!(run(taken).starts_with("/tmp/ka-0/libka_preload-"));
    for before in [
        format!("{taken} {nobody} mkdir -m 777 /tmp/ka-0"),
        format!("{taken} {nobody} ln -s /tmp/theirs /tmp/ka-0"),
        format!("{taken} mkdir /tmp/ka-0; chmod 770 /tmp/ka-0"),
    ] {
        let said = run(&before);
        assert!(
            said.contains("/tmp/ka-0 must be a directory that only this user can write")
                && said.ends_with("status 125\n"),
            "{before}: {said}"
        );
    }
}

/// ka runs only the user's program, whatever PATH contains.
#[test]
fn ka_runs_no_other_program() {
    let holder = Holder::start(&mut Command::new(holder()));
    let pid = holder.pid().to_string();
    for (args, programs) in [
        (&["ls", "--pid", &pid][..], 1),
        (&["check", "sh"], 1),
        (&["check", &pid], 1),
        (&["attach", "--dry-run", &pid], 1),
        (&["plan", "--path", "350s"], 1),
        (&["defaults"], 1),
        (&["cgroup", "ls"], 1),
        (&["run", "true"], 2),
        (&["run", "--via", "seccomp", "true"], 2),
    ] {
        let log = scratch("programs");
        let mut strace = bare("strace");
        strace.args(["-f", "-qq", "-e", "trace=execve,execveat", "-e", "signal=none", "-o"]).arg(&log);
        strace.arg(release().join("ka")).args(args);
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let log = fs::read_to_string(log).unwrap();
        assert_eq!(log.matches("execve").count(), programs, "{args:?}: {log}");
    }
}

/// Puts a FIFO, a socket, a device and a folder in every place where ka opens a file that a user named. Opening
/// a FIFO without a writer would block forever.
#[test]
fn files_that_are_not_regular_are_rejected_and_not_opened() {
    const NOT_REGULAR: &str = "it is not a regular file";
    let folder = PublicFolder::new("files");
    let (fifo, socket) = (folder.join("fifo"), folder.join("socket"));
    succeed(Command::new("mkfifo").args(["-m", "755"]).arg(&fifo));
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o755)).unwrap();
    let script = |name: &str, line: String| {
        let path = folder.join(name);
        write_script(&path, &line);
        path
    };
    // timeout(1) makes a hang of ka a failure of the test.
    let timed = |args: &[&OsStr]| {
        let mut command = Command::new("timeout");
        command.arg("60").arg(ka().get_program()).args(args).env("PATH", "/usr/bin:/bin");
        command
    };
    for (number, (path, why)) in [
        (&*fifo, NOT_REGULAR),
        (&socket, NOT_REGULAR),
        (Path::new("/dev/null"), NOT_REGULAR),
        (&folder, "is a directory"),
    ]
    .into_iter()
    .enumerate()
    {
        let direct = script(&format!("direct-{number}"), format!("#!{}\n", path.display()));
        let through_env = script(&format!("env-{number}"), format!("#!/usr/bin/env {}\n", path.display()));
        let is_refused = |expected: i32, mut command: Command, why: &str| {
            let (status, out, err) = outcome(&mut command);
            assert!(
                status == expected && out.is_empty() && err.contains(why),
                "{command:?}: {status} {out}{err}"
            );
        };
        for program in [path, &direct] {
            is_refused(126, timed(&["run".as_ref(), "--".as_ref(), program.as_ref()]), why);
            let (status, out, err) = outcome(&mut timed(&["check".as_ref(), program.as_ref()]));
            assert!(status != 0 && format!("{out}{err}").contains(why), "{program:?}: {status} {out}{err}");
        }
        // env(1) itself reports the error of its program.
        let (status, ..) = outcome(&mut timed(&["run".as_ref(), "--".as_ref(), through_env.as_ref()]));
        assert_eq!(status, 126, "{path:?}");
        assert_ne!(outcome(&mut timed(&["check".as_ref(), through_env.as_ref()])).0, 124, "{path:?}");
        let mut preload = timed(&["run".as_ref(), "--via".as_ref(), "preload".as_ref(), "true".as_ref()]);
        preload.env("KA_PRELOAD", path);
        is_refused(125, preload, why);
        is_refused(2, timed(&["ls".as_ref(), "--netns".as_ref(), path.as_ref()]), why);
        let cgroup = timed(&["cgroup".as_ref(), "attach".as_ref(), path.as_ref()]);
        is_refused(2, cgroup, "not a cgroup");
    }
    // The search of PATH skips a FIFO, as the shell does.
    fs::rename(&fifo, folder.join("true")).unwrap();
    let mut run = timed(&["run".as_ref(), "--".as_ref(), "true".as_ref()]);
    run.env("PATH", format!("{}:/usr/bin:/bin", folder.display()));
    assert_eq!(outcome(&mut run), (0, String::new(), String::new()));
}
