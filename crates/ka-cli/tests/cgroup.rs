//! Tests `ka cgroup`, and the other ways that use bpf(2). The processes check their own options by getsockopt(2).
//!
//! The tests need root on the machine itself, because a user namespace does not permit any of this. Each test has its
//! own network and mount namespaces. Its cgroups are below one cgroup, which the test removes. Policies are pinned in
//! a bpf filesystem that only the test sees, and that ends with it.

mod command;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use command::cgroups::{Cgroup, attaching, in_own_cgroup_tree, unit_calls};
use command::json::{assert_described, described};
use command::{Holder, as_nobody, go_holder, holder, ka, outcome, source, static_holder};
use ka_test::artifact::release;
use ka_test::child::{Running, stdout, succeed};
use ka_test::compiler::{Linkage, allowing, cc, compile};
use ka_test::kernel::has_mptcp;
use ka_test::lines::Lines;
use ka_test::log::skip;
use ka_test::path::{PublicFolder, copy_program, root, scratch};
use ka_test::process::{children, kill, raise_descriptor_limit, signal_child};
use ka_test::socket::{has_rto_max, keepalive_options, option, rto_max, set_option};
use ka_test::wait::eventually;
use serde_json::Value;

/// Returns a command that starts in a cgroup.
fn within(cgroup: &Path, program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup).arg(program);
    command
}

fn ka_cgroup(args: &[&str], cgroup: &Path) -> (i32, String, String) {
    outcome(ka().arg("cgroup").args(args).arg(cgroup))
}

fn detach(cgroup: &Path) {
    let (status, out, err) = ka_cgroup(&["detach"], cgroup);
    assert!(status == 0 && out.contains(", detached; open sockets keep their settings\n"), "{out}{err}");
    assert_eq!(err, "");
}

/// Returns the last part of a message such as `/ka-test-1: idle=60,intvl=10,cnt=6, mode force; 3 sockets set, 0
/// unchanged, 0 failed`.
fn attached(outcome: &(i32, String, String)) -> &str {
    assert_eq!((outcome.0, outcome.2.as_str()), (0, ""), "{outcome:?}");
    outcome.1.split_once("; ").unwrap().1.trim_end()
}

/// Returns the listed policies of a test's cgroups, and those of removed cgroups. Other tests use the same tree.
fn listed(cgroup: &Cgroup) -> Vec<Value> {
    let (status, out, err) = outcome(ka().args(["cgroup", "ls", "--json"]));
    assert_eq!((status, err.as_str()), (0, ""));
    let mut rows: Vec<Value> = serde_json::from_str(&out).unwrap();
    let name = format!("/{}", cgroup.0.file_name().unwrap().display());
    rows.retain(|row| row["cgroup"].as_str().is_none_or(|path| Path::new(path).starts_with(&name)));
    rows
}

/// Tests a dynamic and a static C program, and a Go program, which sets an idle time of 15 s after connect. In the
/// cgroup and in a cgroup below it, open sockets and later sockets get the policy. Other sockets do not.
#[test]
fn all_programs_of_a_cgroup_have_the_policy() {
    if !in_own_cgroup_tree("all_programs_of_a_cgroup_have_the_policy") {
        return;
    }
    let cgroup = Cgroup::new();
    let below = cgroup.below("below");
    let mut outside = Holder::start(&mut Command::new(holder()));
    let mut before = Holder::start(&mut within(&below, holder()));
    let result = ka_cgroup(&["attach", "-p", "280,30,5"], &cgroup.0);
    assert_eq!(attached(&result), "3 sockets set, 0 unchanged, 0 failed");
    before.assert_all(280, 30, 5);
    before.open();
    before.assert_all(280, 30, 5);
    for program in [holder(), static_holder(), go_holder()] {
        for cgroup in [&cgroup.0, &below] {
            let mut holder = Holder::start(&mut within(cgroup, program));
            holder.open();
            holder.assert_all(280, 30, 5);
        }
    }
    outside.open();
    assert!(outside.look().iter().all(|options| !options.on));

    // `ka check` names the policy of a process.
    let report = |pid: i32| -> Value {
        serde_json::from_str(&outcome(ka().args(["check", "--json", &pid.to_string()])).1).unwrap()
    };
    let (own, other) = (report(before.pid()), report(outside.pid()));
    let name = format!("/{}", cgroup.0.file_name().unwrap().display());
    let expected =
        serde_json::json!([{"cgroup": name, "policy": "idle=280,intvl=30,cnt=5", "mode": "force"}]);
    assert_eq!((&own["cgroups"], &own["ways"][0]["way"]), (&expected, &"cgroup".into()));
    let itself = Holder::start(&mut within(&cgroup.0, holder()));
    assert_eq!(report(itself.pid())["cgroups"], expected);
    drop(itself);
    assert_eq!((&other["cgroups"], &other["ways"][0]["way"]), (&serde_json::json!([]), &"attach".into()));

    let [row] = &listed(&cgroup)[..] else { panic!("{:?}", listed(&cgroup)) };
    assert_eq!((&row["policy"], &row["mode"]), (&"idle=280,intvl=30,cnt=5".into(), &"force".into()));
    assert_eq!(row["cgroup"], format!("/{}", cgroup.0.file_name().unwrap().display()));
    // A second policy replaces the first.
    let result = ka_cgroup(&["attach", "-p", "90,9,3"], &cgroup.0);
    assert_eq!(attached(&result), "5 sockets set, 0 unchanged, 0 failed");
    before.assert_all(90, 9, 3);
    assert_eq!(listed(&cgroup).len(), 1, "{:?}", listed(&cgroup));
    // After detach, new sockets have no policy. Open sockets keep theirs.
    let said = outcome(ka().args(["cgroup", "detach"]).arg(&cgroup.0));
    let expected = "idle=90,intvl=9,cnt=3, mode force, detached; open sockets keep their settings\n";
    assert!(said.0 == 0 && said.1.ends_with(expected) && said.2.is_empty(), "{said:?}");
    let mut after = Holder::start(&mut within(&cgroup.0, holder()));
    assert!(after.look().iter().all(|options| !options.on));
    before.assert_all(90, 9, 3);
    assert_eq!(listed(&cgroup), Vec::<Value>::new());
    assert_eq!(ka_cgroup(&["ls"], &cgroup.0).1, "no cgroup has a policy\n");
    let (status, _, err) = ka_cgroup(&["detach"], &cgroup.0);
    assert!(status == 1 && err.contains("it has no policy of its own"), "{err}");
}

/// The program's calls that set keepalive succeed or fail as without ka, but change nothing. All other calls pass.
#[test]
fn force_mode_enforces_the_policy() {
    if !in_own_cgroup_tree("force_mode_enforces_the_policy") {
        return;
    }
    let cgroup = Cgroup::new();
    attached(&ka_cgroup(&["attach", "-p", "60,10,6"], &cgroup.0));
    fs::write(cgroup.0.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let fd = stream.as_raw_fd();
    let held = [Ok(1), Ok(60), Ok(10), Ok(6), Ok(0)];
    assert_eq!(keepalive_options(fd)[..5], held);
    assert_eq!(keepalive_options(listener.accept().unwrap().0.as_raw_fd())[..5], held);
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0);
    for (name, value) in [(libc::TCP_KEEPIDLE, 99), (libc::TCP_KEEPINTVL, 9), (libc::TCP_KEEPCNT, 9)] {
        set_option(fd, libc::IPPROTO_TCP, name, value);
    }
    assert_eq!(keepalive_options(fd)[..5], held);
    // Invalid calls get the errors of the kernel.
    let set = |level, name, value: i32, size| {
        // SAFETY: `value` has 4 bytes, and the kernel reads at most as many.
        let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) };
        if result == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap() }
    };
    for (name, value, size, expected) in [
        (libc::TCP_KEEPIDLE, 0, 4, libc::EINVAL),
        (libc::TCP_KEEPIDLE, 32768, 4, libc::EINVAL),
        (libc::TCP_KEEPINTVL, -1, 4, libc::EINVAL),
        (libc::TCP_KEEPCNT, 128, 4, libc::EINVAL),
        (libc::TCP_KEEPCNT, 127, 3, libc::EINVAL),
        (libc::TCP_USER_TIMEOUT, -1, 4, libc::EINVAL),
        (libc::TCP_KEEPCNT, 127, 4, 0),
    ] {
        assert_eq!(set(libc::IPPROTO_TCP, name, value, size), expected, "{name} {value} {size}");
    }
    // SAFETY: the kernel rejects the address.
    assert_eq!(unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 8 as *const _, 4) }, -1);
    assert_eq!(keepalive_options(fd)[..5], held);
    // A user timeout may be shorter than the detection time of the policy. A longer one is clamped.
    for (value, expected) in [(5000, 5000), (900_000, 120_000), (0, 0)] {
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value);
        assert_eq!(keepalive_options(fd)[4], Ok(expected));
    }
    // Calls for other options, and for sockets that are not TCP, pass.
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    assert_eq!(option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY), Ok(1));
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    set_option(udp.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    assert_eq!(option(udp.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE), Ok(1));
    // From outside the cgroup, the policy wins too, and attach reports this.
    let (own, port) = (std::process::id().to_string(), stream.local_addr().unwrap().port().to_string());
    let (status, out, err) = outcome(ka().args(["attach", "-d", "99", "--port", &port, &own]));
    // attach also names the policy of the sockets that the process opens later.
    assert!(
        status == 1 && err.contains(": the policy of the cgroup /") && err.lines().count() == 1,
        "{out}{err}"
    );
    assert!(out.contains(": its cgroup has a policy in mode force"), "{out}");
    assert!(out.ends_with("0 sockets set to 99,10,6 (mode force), 0 unchanged, 1 failed\n"), "{out}");
    assert_eq!(keepalive_options(fd)[..4], held[..4]);
    // The cgroup's policy does not affect the command in the message.
    assert!(out.contains("; use ka attach --all --via bpf"), "{out}");
    let (status, out, err) =
        outcome(ka().args(["attach", "--all", "--via", "bpf", "-d", "99", "--port", &port]));
    assert!(status == 0 && err.is_empty(), "{out}{err}");
    assert_eq!(keepalive_options(fd)[1], Ok(99));
    assert_eq!(ka_cgroup(&["attach", "-p", "60,10,6"], &cgroup.0).0, 0);
    assert_eq!(keepalive_options(fd)[..4], held[..4]);
    // A policy with a user timeout enforces it, also on open sockets.
    let result = ka_cgroup(&["attach", "-p", "60,10,6", "-u", "auto"], &cgroup.0);
    assert!(attached(&result).ends_with(" 0 failed"));
    assert_eq!(keepalive_options(fd)[4], Ok(120_000));
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 5000);
    assert_eq!(keepalive_options(fd)[4], Ok(120_000));
}

#[test]
fn default_mode_keeps_keepalive_of_the_program() {
    if !in_own_cgroup_tree("default_mode_keeps_keepalive_of_the_program") {
        return;
    }
    let cgroup = Cgroup::new();
    let mut before = Holder::start(within(&cgroup.0, holder()).arg("keepalive"));
    let result = ka_cgroup(&["attach", "--mode", "default", "-p", "60,10,6"], &cgroup.0);
    assert_eq!(attached(&result), "2 sockets set, 1 unchanged, 0 failed");
    let own = |holder: &mut Holder| {
        holder.look().iter().map(|options| (options.on, options.timers[0])).collect::<Vec<_>>()
    };
    assert_eq!(own(&mut before), [(true, 60), (true, 10), (true, 60)]);
    let mut after = Holder::start(within(&cgroup.0, holder()).arg("keepalive"));
    assert_eq!(own(&mut after), [(true, 60), (true, 10), (true, 60)]);
    // Go sets its own values after connect and accept, which the default mode permits.
    let mut go = Holder::start(&mut within(&cgroup.0, go_holder()));
    assert_eq!(own(&mut go), [(true, 60), (true, 15), (true, 15)]);
    assert_eq!(listed(&cgroup)[0]["mode"], "default");
}

/// One of the policies is in force at the end, and no attach fails because of another.
#[test]
fn concurrent_attaches_to_one_cgroup_succeed() {
    if !in_own_cgroup_tree("concurrent_attaches_to_one_cgroup_succeed") {
        return;
    }
    let cgroup = Cgroup::new();
    for _ in 0..5 {
        let start = |idle: i32| {
            let mut command = ka();
            command.args(["cgroup", "attach", "-d", &idle.to_string()]).arg(&cgroup.0);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let started: Vec<_> = (30..40).map(start).collect();
        for child in started {
            let output = child.wait_with_output().unwrap();
            let err = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success() && err.is_empty(), "{} {err}", output.status);
        }
        assert_eq!(listed(&cgroup).len(), 1, "{:?}", listed(&cgroup));
    }
}

/// A BPF program that is attached without a flag allows no other programs in its cgroup. Python attaches one, and ka
/// reports it instead of missing rights.
#[test]
fn an_exclusive_bpf_program_is_reported() {
    const ALONE: &str = "import ctypes, os, struct, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        # return 1;\n\
        program = ctypes.create_string_buffer(struct.pack('BBhiBBhi', 0xb7, 0, 0, 1, 0x95, 0, 0, 0), 16)\n\
        licence = ctypes.create_string_buffer(b'GPL')\n\
        def bpf(command, words):\n\
        \x20   attributes = ctypes.create_string_buffer(words, 128)\n\
        \x20   result = libc.syscall(int(sys.argv[2]), command, attributes, 128)\n\
        \x20   if result < 0: raise OSError(ctypes.get_errno(), 'bpf')\n\
        \x20   return result\n\
        loaded = bpf(5, struct.pack('IIQQ', 13, 2, ctypes.addressof(program), ctypes.addressof(licence)))\n\
        bpf(8, struct.pack('IIII', os.open(sys.argv[1], os.O_RDONLY), loaded, 3, 0))\n";
    if !in_own_cgroup_tree("an_exclusive_bpf_program_is_reported") {
        return;
    }
    let cgroup = Cgroup::new();
    let below = cgroup.below("below");
    let call = libc::SYS_bpf.to_string();
    succeed(Command::new("python3").args(["-c", ALONE]).arg(&cgroup.0).arg(call));
    for path in [&cgroup.0, &below] {
        let (status, out, err) = ka_cgroup(&["attach"], path);
        assert!(status == 2 && out.is_empty() && err.contains("allows no others"), "{err}");
    }
    assert_eq!(listed(&cgroup), Vec::<Value>::new());
}

/// Linux 5.8 to 6.4 reject a setsockopt(2) with a value longer than a page, unless the BPF program asks to pass the
/// value unchanged. The program in the cgroup above behaves as these kernels do.
#[test]
fn values_longer_than_a_page_reach_the_kernel() {
    const OLDER: &str = "import ctypes, os, struct, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        page = os.sysconf('SC_PAGESIZE')\n\
        # r2 = call->optlen; r0 = 1; if ((s32)r2 <= page) goto exit; r0 = 0; exit: return r0;\n\
        program = b''.join(struct.pack('BBhi', *insn) for insn in [(0x61, 0x12, 32, 0), (0xb7, 0, 0, 1),\n\
            (0xd6, 2, 1, page), (0xb7, 0, 0, 0), (0x95, 0, 0, 0)])\n\
        program, licence = ctypes.create_string_buffer(program, 40), ctypes.create_string_buffer(b'GPL')\n\
        def bpf(command, *words):\n\
        \x20   attributes = ctypes.create_string_buffer(b''.join(words), 128)\n\
        \x20   result = libc.syscall(int(sys.argv[2]), command, attributes, 128)\n\
        \x20   if result < 0: raise OSError(ctypes.get_errno(), 'bpf')\n\
        \x20   return result\n\
        loaded = bpf(5, struct.pack('IIQQ', 25, 5, ctypes.addressof(program), ctypes.addressof(licence)),\n\
            bytes(44), struct.pack('I', 22))\n\
        bpf(8, struct.pack('IIII', os.open(sys.argv[1], os.O_RDONLY), loaded, 22, 2))\n";
    if !in_own_cgroup_tree("values_longer_than_a_page_reach_the_kernel") {
        return;
    }
    let cgroup = Cgroup::new();
    let below = cgroup.below("below");
    attached(&ka_cgroup(&["attach"], &below));
    let call = libc::SYS_bpf.to_string();
    succeed(Command::new("python3").args(["-c", OLDER]).arg(&cgroup.0).arg(call));
    let python = "import os, socket\n\
                  tail = bytes(2 * os.sysconf('SC_PAGESIZE'))\n\
                  s = socket.socket()\n\
                  for option, value in (socket.TCP_NODELAY, 1), (socket.TCP_USER_TIMEOUT, 3600000):\n\
                  \x20   s.setsockopt(socket.IPPROTO_TCP, option, value.to_bytes(4, 'little') + tail)\n\
                  \x20   print(s.getsockopt(socket.IPPROTO_TCP, option))";
    let options = stdout(within(&below, Path::new("python3")).args(["-c", python]));
    assert_eq!(options, "1\n120000\n");
}

/// The kernel calls the programs of the topmost cgroup last.
#[test]
fn the_policy_of_the_cgroup_above_overrides() {
    if !in_own_cgroup_tree("the_policy_of_the_cgroup_above_overrides") {
        return;
    }
    let cgroup = Cgroup::new();
    let below = cgroup.below("below");
    attached(&ka_cgroup(&["attach", "-d", "50"], &below));
    // attach reports which policies below the new one overrides, and in which mode.
    let (status, _, err) = ka_cgroup(&["attach", "-d", "90"], &cgroup.0);
    let overrides = "the new policy overrides the policies of cgroups below: ";
    assert!(status == 0 && err.starts_with(&format!("ka: cgroup attach: {overrides}")), "{err}");
    assert!(err.ends_with("/below (idle=50,intvl=10,cnt=6)\n"), "{err}");
    let (status, _, err) = ka_cgroup(&["attach", "-d", "90", "--mode", "default"], &cgroup.0);
    assert_eq!((status, err.as_str()), (0, ""));
    assert_eq!(ka_cgroup(&["attach", "-d", "90"], &cgroup.0).0, 0);
    // For the cgroup below, ls lists both policies, the one above first.
    let (status, out, err) = ka_cgroup(&["ls", "--json"], &below);
    assert_eq!((status, err.as_str()), (0, ""));
    let rows: Vec<Value> = serde_json::from_str(&out).unwrap();
    let said: Vec<_> = rows.iter().map(|row| (&row["idle"], &row["above"])).collect();
    assert_eq!(said, [(&90.into(), &true.into()), (&50.into(), &false.into())]);
    assert!(ka_cgroup(&["ls"], &below).1.lines().nth(1).unwrap().contains(" (above)"));
    Holder::start(&mut within(&below, holder())).assert_all(90, 10, 6);
    // attach to the cgroup below warns about this.
    let holds = " above, idle=90,intvl=10,cnt=6 in mode force, overrides this policy\n";
    let (status, _, err) = ka_cgroup(&["attach", "-d", "50"], &below);
    assert!(
        status == 0 && err.starts_with("ka: cgroup attach: the policy of /") && err.ends_with(holds),
        "{err}"
    );
    attached(&ka_cgroup(&["attach", "-d", "90"], &below));
    // `ka run` in the cgroup below warns too, by each way, unless the policies are equal.
    let said = "ka: run: the policy of the cgroup, 90,10,6, overrides the requested one (see ka cgroup ls)\n";
    for way in ["preload", "seccomp", "cgroup"] {
        for (idle, said) in [("30", said), ("90", "")] {
            let mut run = within(&below, &release().join("ka"));
            run.args(["run", "--via", way, "-d", idle, "true"]);
            assert_eq!(outcome(&mut run), (0, String::new(), said.to_owned()), "{way}");
        }
    }
    assert_eq!(ka_cgroup(&["attach", "-d", "50"], &below).0, 0);
    // In the default mode, a policy above leaves sockets alone that the policy below has set.
    attached(&ka_cgroup(&["attach", "-d", "90", "--mode", "default"], &cgroup.0));
    Holder::start(&mut within(&below, holder())).assert_all(50, 10, 6);
    // The policy of ka run is removed a moment after its program has ended.
    eventually("two have a policy", || listed(&cgroup).len() == 2);
}

/// mount(8) mounts bpffs so that every user may create folders in it. ka does not follow links there, and does not
/// remove their targets.
#[test]
fn pins_of_other_users_in_bpffs_are_neither_used_nor_removed() {
    if !in_own_cgroup_tree("pins_of_other_users_in_bpffs_are_neither_used_nor_removed") {
        return;
    }
    let cgroup = Cgroup::new();
    let precious = PublicFolder::new("precious");
    fs::write(precious.join("file"), "").unwrap();
    let mut plant = Command::new("sh");
    plant.args(["-c", "mkdir /sys/fs/bpf/ka && ln -s \"$0\" /sys/fs/bpf/ka/1"]).arg(&precious);
    succeed(&mut as_nobody(&plant));
    let (status, out, err) = ka_cgroup(&["attach"], &cgroup.0);
    assert!(status == 2 && out.is_empty() && err.contains("bpf/ka: it belongs to user 65534"), "{err}");
    let (status, _, err) = outcome(ka().args(["cgroup", "detach", "--all"]));
    assert!(status == 2 && err.contains("it belongs to user 65534"), "{err}");
    assert!(precious.join("file").exists());
    // A link in a folder of root was not made by ka.
    succeed(Command::new("sh").args(["-c", "rm /sys/fs/bpf/ka/1 && rmdir /sys/fs/bpf/ka"]));
    attached(&ka_cgroup(&["attach"], &cgroup.0));
    std::os::unix::fs::symlink(&precious, "/sys/fs/bpf/ka/1").unwrap();
    assert_eq!(outcome(ka().args(["cgroup", "detach", "--all"])).0, 0);
    assert!(precious.join("file").exists());
    assert_eq!(listed(&cgroup), Vec::<Value>::new());
}

/// If ka is killed between two renames, its policy stays pinned in a folder of another name. The policy is in force
/// until another replaces it, and detach removes it.
#[test]
fn an_interrupted_attach_stays_in_force_until_replaced_or_detached() {
    if !in_own_cgroup_tree("an_interrupted_attach_stays_in_force_until_replaced_or_detached") {
        return;
    }
    let cgroup = Cgroup::new();
    let kept = Path::new("/sys/fs/bpf/ka");
    let names = || {
        let entries = fs::read_dir(kept).unwrap().flatten().map(|entry| entry.file_name());
        entries.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    let id = fs::metadata(&cgroup.0).unwrap().ino().to_string();
    let left = |name: &str| fs::rename(kept.join(&id), kept.join(format!("{id}_{name}"))).unwrap();
    attached(&ka_cgroup(&["attach"], &cgroup.0));
    left("old");
    detach(&cgroup.0);
    assert_eq!((names(), listed(&cgroup)), (vec![], vec![]));
    assert!(!Holder::start(&mut within(&cgroup.0, holder())).look()[0].on);

    // Until the end, the program creates listeners, and counts those without the policy.
    let asks = "import os, socket, threading\n\
                done = threading.Event()\n\
                threading.Thread(target=lambda: (os.read(0, 1), done.set())).start()\n\
                print('ready', flush=True)\n\
                without = count = 0\n\
                while not done.is_set():\n\
                \x20   with socket.socket() as s:\n\
                \x20       s.listen()\n\
                \x20       without += s.getsockopt(1, 9) == 0\n\
                \x20       count += 1\n\
                print(without, count > 100)";
    attached(&ka_cgroup(&["attach"], &cgroup.0));
    let mut python = within(&cgroup.0, Path::new("python3"));
    let mut python = python.args(["-c", asks]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = Lines::new("python3", python.stdout.take().unwrap());
    assert_eq!(lines.expect("`ready`"), "ready");
    for (name, idle) in [("old", 50), ("new", 60), ("old", 70), ("new", 80), ("old", 90)] {
        left(name);
        assert_eq!(ka_cgroup(&["attach", "-d", &idle.to_string()], &cgroup.0).0, 0);
        assert_eq!(names(), [id.as_str()], "no other pin remains");
        let rows = listed(&cgroup);
        assert!(rows.len() == 1 && rows[0]["idle"] == idle, "{rows:?}");
    }
    drop(python.stdin.take());
    assert_eq!(lines.expect("its result"), "0 True");
    assert!(python.wait().unwrap().success());
}

/// Such a program makes no socket system calls: the kernel creates and connects the socket through a ring.
#[test]
fn sockets_made_by_io_uring_get_the_policy() {
    if !in_own_cgroup_tree("sockets_made_by_io_uring_get_the_policy") {
        return;
    }
    let cgroup = Cgroup::new();
    attached(&ka_cgroup(&["attach", "-p", "280,30,5"], &cgroup.0));
    let ring = compile(&mut cc(), &source("ring"), Linkage::Nothing);
    let (status, out, err) = outcome(&mut within(&cgroup.0, &ring));
    if status == 77 {
        skip("no io_uring here");
        return;
    }
    assert_eq!((status, err.as_str()), (0, ""));
    let options: Vec<_> = out.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(options, ["1 280 30 5 0"; 2]);
}

/// The keepalive timers of a Multipath TCP connection are those of its subflows, which the kernel reports as TCP.
#[test]
fn multipath_tcp_connections_get_the_policy() {
    if !in_own_cgroup_tree("multipath_tcp_connections_get_the_policy") || !has_mptcp() {
        return;
    }
    let cgroup = Cgroup::new();
    attached(&ka_cgroup(&["attach", "-p", "77,10,6"], &cgroup.0));
    let python = "import socket, time\n\
                  l = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); l.bind(('127.0.0.1', 7000)); l.listen()\n\
                  c = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); c.connect(('127.0.0.1', 7000))\n\
                  a = l.accept()\ntime.sleep(600)";
    let _python = Running::start(within(&cgroup.0, Path::new("python3")).args(["-c", python]));
    eventually("both ends' keepalive timers run", || command::armed(77.0).1 == 2);
}

#[test]
fn failures_are_reported() {
    if !in_own_cgroup_tree("failures_are_reported") {
        return;
    }
    let cgroup = Cgroup::new();
    let path = cgroup.0.to_str().unwrap();
    for (args, expected) in [
        (
            &["attach", "/no/such"][..],
            "/no/such: not a cgroup (v2): neither a cgroup's folder nor a name below",
        ),
        (&["attach", "/etc"], "/etc: not a cgroup (v2)"),
        (&["attach", ""], "the name is empty; the root cgroup is /"),
        (&["attach", "-p", "off", path], "--policy off: the policy must turn keepalive on here"),
        (&["attach", "--mode", "floor", path], "invalid value 'floor' for '--mode <MODE>'"),
        (&["attach", "/"], "/ is the root cgroup, so the policy would apply to all programs of this machine"),
        (&["detach"], "required"),
        (&["detach", "--all", path], "cannot be used with"),
    ] {
        let (status, out, err) = outcome(ka().arg("cgroup").args(args));
        assert!(status == 2 && out.is_empty() && err.contains(expected), "{args:?}: {status} {err}");
    }
    let (status, out, err) = outcome(ka().env("KA_MODE", "floor").args(["cgroup", "attach", path]));
    assert!(status == 2 && out.is_empty() && err.contains("a cgroup cannot have it"), "{err}");
    let (status, out, _) = outcome(ka().env("KA_POLICY", "280,30,5").args(["cgroup", "attach", path]));
    assert!(status == 0 && out.contains(": idle=280,intvl=30,cnt=5, mode force; "), "{out}");
    detach(Path::new(path));
    let folder = PublicFolder::new("cgroup");
    copy_program(release().join("ka"), folder.join("ka"));
    for (args, needs) in [
        (&["attach", path][..], "needs CAP_BPF and CAP_NET_ADMIN (run ka as root)"),
        (&["detach", path], "needs CAP_BPF and CAP_NET_ADMIN (run ka as root)"),
        (&["ls"], "needs CAP_NET_ADMIN and CAP_SYS_ADMIN (run ka as root)"),
    ] {
        let (status, _, err) =
            outcome(&mut as_nobody(Command::new(folder.join("ka")).arg("cgroup").args(args)));
        assert!(status == 2 && err.contains(needs), "{args:?}: {status} {err}");
    }
    // Without the rights to set open sockets, attach does the rest, and says so. Sockets that an old listener accepts
    // later get the policy nevertheless.
    let mut holder = Holder::start(&mut within(&cgroup.0, holder()));
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--bounding-set", "-perfmon,-sys_admin"]);
    wrapped.arg(ka().get_program()).args(["cgroup", "attach", path]);
    let (status, out, err) = outcome(&mut wrapped);
    assert!(
        status == 1 && out.ends_with("0 sockets set, 0 unchanged, 0 failed; some were not examined\n"),
        "{out}{err}"
    );
    assert!(err.contains("the open sockets were not set: needs CAP_PERFMON"), "{err}");
    assert_eq!(listed(&cgroup).len(), 1);
    // Listing pinned policies does not need CAP_SYS_ADMIN either.
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--bounding-set", "-sys_admin"]);
    wrapped.arg(ka().get_program()).args(["cgroup", "ls", "--json", path]);
    let (status, out, err) = outcome(&mut wrapped);
    assert!(
        status == 0
            && err.contains(
                "only the pinned policies of ka cgroup attach are listed: to list the others, ka needs CAP_"
            ),
        "{out}{err}"
    );
    let rows: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(rows[0]["policy"], "idle=60,intvl=10,cnt=6", "{rows}");
    assert_eq!((&rows[0]["mode"], rows.as_array().unwrap().len()), (&"force".into(), 1));
    holder.open();
    assert_eq!(
        holder.look().iter().map(|options| options.on).collect::<Vec<_>>(),
        [false, false, false, true, true]
    );

    succeed(Command::new("umount").arg("/sys/fs/bpf"));
    let (status, _, err) = ka_cgroup(&["attach"], &cgroup.0);
    assert!(status == 2 && err.contains("bpffs is not mounted at /sys/fs/bpf (mount -t bpf"), "{err}");
    // Unmounting the filesystem removes the policies that were pinned in it.
    eventually("no policy is attached", || listed(&cgroup).is_empty());
}

#[test]
fn the_manual_pages_describe_each_json_key() {
    if !in_own_cgroup_tree("the_manual_pages_describe_each_json_key") {
        return;
    }
    let json = |(_, out, err): (i32, String, String)| -> Value {
        serde_json::from_str(&out).unwrap_or_else(|why| panic!("{why}: {out}{err}"))
    };
    let cgroup = Cgroup::new();
    let [below, removed] = ["below", "removed"].map(|name| cgroup.below(name));
    let holder = Holder::start(&mut within(&below, holder()));
    let attached = [&cgroup.0, &below, &removed].map(|path| json(ka_cgroup(&["attach", "--json"], path)));
    // With an open socket that ka may not examine, `left` has a reason.
    let mut blind = Command::new("setpriv");
    blind.args(["--bounding-set", "-perfmon,-sys_admin"]).arg(ka().get_program());
    let blind = json(outcome(blind.args(["cgroup", "attach", "--json"]).arg(&below)));
    assert_ne!(blind["left"], serde_json::json!([]));
    let [keys] = described("ka-cgroup-attach.1");
    assert_described(&keys, &[&attached[..], &[blind]].concat());

    fs::remove_dir(&removed).unwrap();
    // The kernel removes a cgroup a moment after rmdir(2).
    let mut all = Value::Null;
    eventually("ls shows the policy of the removed cgroup", || {
        all = json(outcome(ka().args(["cgroup", "ls", "--json"])));
        let is_removed = |row: &Value| row["cgroup"].is_null() && row["policy"].is_null() && row["id"] == 0;
        all.as_array().unwrap().iter().any(is_removed)
    });
    let [keys] = described("ka-cgroup-ls.1");
    assert_described(&keys, &[all, json(ka_cgroup(&["ls", "--json"], &below))]);

    let check = |args: &[&str]| json(outcome(ka().args(["check", "--json"]).args(args)));
    let process = check(&[&holder.pid().to_string()]);
    assert_eq!(process["cgroups"].as_array().unwrap().len(), 2, "{process}");
    let [keys] = described("ka-check.1");
    assert_described(&keys, &[process, check(&[]), check(&["true"])]);
}

/// If a cgroup is removed, ls shows its pinned policy, and the next command removes it.
#[test]
fn pins_of_removed_cgroups_are_removed() {
    if !in_own_cgroup_tree("pins_of_removed_cgroups_are_removed") {
        return;
    }
    let cgroup = Cgroup::new();
    let [first, second] = ["first", "second"].map(|name| cgroup.below(name));
    attached(&ka_cgroup(&["attach"], &first));
    fs::remove_dir(&first).unwrap();
    eventually("ls shows it as removed", || {
        listed(&cgroup).first().is_some_and(|row| row["cgroup"].is_null())
    });
    attached(&ka_cgroup(&["attach"], &second));
    let rows = listed(&cgroup);
    assert!(rows.len() == 1 && rows[0]["cgroup"].as_str().unwrap().ends_with("/second"), "{rows:?}");
    let said = outcome(ka().args(["cgroup", "detach", "--all"]));
    assert!(
        said.0 == 0 && said.1.contains("/second: idle=60,intvl=10,cnt=6, mode force, detached; "),
        "{said:?}"
    );
    let nothing = "no cgroup has a policy of ka cgroup attach\n";
    assert_eq!(outcome(ka().args(["cgroup", "detach", "--all"])), (0, nothing.to_owned(), String::new()));
    assert_eq!(fs::read_dir("/sys/fs/bpf/ka").unwrap().count(), 0);
}

/// Starts `ka cgroup attach --foreground`, and returns when it has reported its work.
fn foreground(cgroup: &Path, policy: &str) -> Running {
    let mut command = ka();
    let (running, line) =
        attaching(command.args(["cgroup", "attach", "--foreground", "-p", policy]).arg(cgroup));
    assert!(line.contains(", mode force; "), "{line}");
    running
}

/// Returns the capability sets of a process from /proc: inheritable, permitted, effective and ambient.
fn capabilities(pid: u32) -> Vec<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let set = |line: &str| u64::from_str_radix(line.strip_prefix("Cap")?.split_once(":\t")?.1, 16).ok();
    let [inheritable, permitted, effective, _, ambient] =
        status.lines().filter_map(set).collect::<Vec<_>>()[..]
    else {
        panic!("{status}")
    };
    vec![inheritable, permitted, effective, ambient]
}

/// Runs the unit's command as the unit's user, with its capabilities and system calls, on a cgroup that the unit's name
/// encodes. The command notifies systemd, and keeps only CAP_BPF.
#[test]
fn the_systemd_unit_has_only_the_rights_that_it_needs() {
    const BPF: u64 = 1 << 39;
    if !in_own_cgroup_tree("the_systemd_unit_has_only_the_rights_that_it_needs") {
        return;
    }
    let cgroup = Cgroup::new();
    let below = cgroup.below("below");
    let mut holder = Holder::start(within(&below, "env".as_ref()).args(elsewhere(holder())));
    let unit = fs::read_to_string(root().join("deploy/systemd/ka-cgroup@.service")).unwrap();
    let values = |key: &str| {
        let prefix = format!("{key}=");
        unit.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect::<Vec<_>>()
    };
    let value = |key: &str| {
        let [value] = &values(key)[..] else { panic!("{key}") };
        value.clone()
    };
    let calls = unit_calls();
    assert_eq!((value("NoNewPrivileges").as_str(), value("DynamicUser").as_str()), ("yes", "yes"));
    assert_eq!(value("CapabilityBoundingSet"), value("AmbientCapabilities"));
    let bounds = value("CapabilityBoundingSet").to_lowercase().replace("cap_", "+").replace(' ', ",");
    let name = format!("{}/below", cgroup.0.file_name().unwrap().display());
    let start = value("ExecStart");
    let mut words = start.split(' ').map(|word| if word == "%I" { name.as_str() } else { word });
    assert_eq!(words.next(), Some("/usr/bin/ka"));
    let folder = PublicFolder::new("unit");
    for (from, to) in [(release().join("ka"), "ka"), (allowing(calls.iter().map(String::as_str)), "allow")] {
        copy_program(from, folder.join(to));
    }
    let manager = UnixDatagram::bind(folder.join("manager")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    fs::set_permissions(folder.join("manager"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let receive = || {
        let mut message = [0; 1024];
        let size = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..size].to_vec()).unwrap()
    };
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--reuid=61184", "--regid=61184", "--clear-groups"]);
    for set in ["bounding", "inh", "ambient"] {
        let option = if set == "bounding" { "--bounding-set".to_owned() } else { format!("--{set}-caps") };
        command.arg(format!("{option}=-all,{bounds}"));
    }
    command.arg(folder.join("allow")).arg(folder.join("ka")).args(words);
    command
        .env("NOTIFY_SOCKET", folder.join("manager"))
        .env("WATCHDOG_USEC", "200000")
        .env_remove("WATCHDOG_PID");
    let (mut running, line) = attaching(&mut command);
    let policy = "idle=280,intvl=30,cnt=5, mode default";
    assert_eq!(line, format!("/{name}: {policy}; 3 sockets set, 0 unchanged, 0 failed"));
    assert!(receive().starts_with("READY=1\nSTATUS=The policy is in force"));
    let mut message = receive();
    while message == "WATCHDOG=1" {
        message = receive();
    }
    assert_eq!(message, format!("STATUS=/{name}: {policy}"));
    // By then ka has only the capability that it needs to notice the end of the cgroup.
    assert_eq!(capabilities(running.0.id()), [0, BPF, BPF, 0]);
    for _ in 0..3 {
        assert_eq!(receive(), "WATCHDOG=1");
    }
    holder.open();
    holder.assert_all(280, 30, 5);
    signal_child(&running.0, libc::SIGTERM);
    let mut message = receive();
    while message == "WATCHDOG=1" {
        message = receive();
    }
    assert_eq!((message.as_str(), running.0.wait().unwrap().code()), ("STOPPING=1", Some(0)));
    assert!(listed(&cgroup).is_empty());

    // ka ignores variables that are addressed to another process. The manager's socket may have an abstract name.
    let manager = UnixDatagram::bind_addr(
        &SocketAddr::from_abstract_name(folder.as_os_str().as_encoded_bytes()).unwrap(),
    );
    let manager = manager.unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = ka();
    command
        .args(["cgroup", "attach", "--foreground"])
        .arg(&below)
        .env("NOTIFY_SOCKET", format!("@{}", folder.display()));
    let (mut running, _) = attaching(command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1"));
    signal_child(&running.0, libc::SIGTERM);
    running.0.wait().unwrap();
    for expected in ["READY=1\n", "STATUS=/", "STOPPING=1"] {
        let mut message = [0; 1024];
        let size = manager.recv(&mut message).unwrap();
        assert!(message[..size].starts_with(expected.as_bytes()), "{expected}");
    }
}

/// This needs no bpf filesystem. A second policy takes over before the first ends. The policy ends with ka, even if
/// ka is killed.
#[test]
fn a_foreground_policy_ends_with_ka() {
    if !in_own_cgroup_tree("a_foreground_policy_ends_with_ka") {
        return;
    }
    succeed(Command::new("umount").arg("/sys/fs/bpf"));
    let cgroup = Cgroup::new();
    let below = cgroup.below("below");
    let mut holder = Holder::start(&mut within(&below, holder()));
    let mut first = foreground(&below, "280,30,5");
    holder.open();
    holder.assert_all(280, 30, 5);
    assert!(listed(&cgroup)[0]["pinned"].is_null());
    let (status, _, err) = ka_cgroup(&["detach"], &below);
    assert!(status == 2 && err.contains("bpffs is not mounted"), "{err}");
    // `ka check` reports that a cgroup is possible without bpffs.
    let checked: serde_json::Value =
        serde_json::from_str(&outcome(ka().args(["check", "--json"])).1).unwrap();
    let way = checked["ways"].as_array().unwrap().iter().find(|way| way["way"] == "cgroup").unwrap();
    assert!(way["reaches"] == true && way["why"].as_str().unwrap().contains("bpffs is not mounted"), "{way}");
    let mut second = foreground(&below, "90,9,3");
    holder.assert_all(90, 9, 3);
    assert_eq!(listed(&cgroup).len(), 2);
    signal_child(&first.0, libc::SIGTERM);
    assert_eq!(first.0.wait().unwrap().code(), Some(0));
    assert_eq!(listed(&cgroup).len(), 1);
    holder.open();
    holder.assert_all(90, 9, 3);
    second.0.kill().unwrap();
    second.0.wait().unwrap();
    eventually("no policy is attached", || listed(&cgroup).is_empty());
    // Open sockets keep the policy. Sockets that a listener accepts inherit it. New sockets have none.
    holder.open();
    assert_eq!(holder.look().iter().filter(|options| !options.on).count(), 1);

    let mut third = foreground(&below, "90,9,3");
    holder.end();
    fs::remove_dir(&below).unwrap();
    eventually("ka ends with the cgroup", || third.0.try_wait().unwrap().is_some());
}

/// Processes in a container have another network namespace than ka.
#[test]
fn open_sockets_in_other_network_namespaces_are_set() {
    if !in_own_cgroup_tree("open_sockets_in_other_network_namespaces_are_set") {
        return;
    }
    let cgroup = Cgroup::new();
    let below = cgroup.below("below");
    let start = || {
        let mut command = within(&below, "unshare".as_ref());
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\""]).arg(holder());
        Holder::start(&mut command)
    };
    let mut holders = [start(), start(), Holder::start(&mut within(&cgroup.0, holder()))];
    let network = || fs::read_link("/proc/self/ns/net").unwrap();
    let before = network();
    // If ka lacks the capability to enter another namespace, it says so and sets the rest.
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--bounding-set", "-sys_admin"]).arg(ka().get_program()).args(["cgroup", "attach"]);
    let (status, out, err) = outcome(wrapped.arg(&cgroup.0));
    assert!(
        status == 1 && out.ends_with("; 3 sockets set, 0 unchanged, 0 failed; some were not examined\n"),
        "{out}{err}"
    );
    assert_eq!(
        err,
        "ka: cgroup attach: the open sockets in 2 other network namespaces were not set: \
         needs CAP_SYS_ADMIN (run ka as root)\n"
    );
    // The same holds if ka cannot see the processes.
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--pid", "--fork", "--mount-proc"]).arg(ka().get_program()).args(["cgroup", "attach"]);
    let (status, out, err) = outcome(wrapped.arg(&cgroup.0));
    assert!(
        status == 1 && out.ends_with("; 0 sockets set, 3 unchanged, 0 failed; some were not examined\n"),
        "{out}{err}"
    );
    assert!(err.starts_with("ka: cgroup attach: 3 processes could not be examined"), "{err}");

    let result = ka_cgroup(&["attach", "-p", "280,30,5"], &cgroup.0);
    assert_eq!(attached(&result), "9 sockets set, 0 unchanged, 0 failed");
    for holder in &mut holders {
        holder.assert_all(280, 30, 5);
        holder.open();
        holder.assert_all(280, 30, 5);
    }
    assert_eq!(network(), before);
}

/// Nests cgroups, as the owner of the first one: the number of levels, the length of each name, and optionally a
/// program to run in the last one.
const NEST: &str = "import os, subprocess, sys\n\
    levels, length, program = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]\n\
    os.chdir(sys.argv[1])\n\
    for _ in range(levels):\n\
    \x20   os.mkdir('n' * length); os.chdir('n' * length)\n\
    if program:\n\
    \x20   procs = os.open('cgroup.procs', os.O_WRONLY)\n\
    \x20   os.write(procs, b'0'); os.close(procs); os.chdir('/')\n\
    \x20   os.execvp(program[0], program)\n";

/// Returns a command that runs a program in its own network namespace with loopback.
fn elsewhere(program: &Path) -> Vec<String> {
    let words = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$0\""];
    words.map(str::to_owned).into_iter().chain([program.display().to_string()]).collect()
}

/// A user with a delegated cgroup makes names longer than a path, many levels, and a folder that only its owner may
/// read. ka sets all other cgroups, and those of the user's cgroups that its rights permit.
#[test]
fn deep_and_unreadable_cgroups_are_set_or_reported() {
    if !in_own_cgroup_tree("deep_and_unreadable_cgroups_are_set_or_reported") {
        return;
    }
    let cgroup = Cgroup::new();
    let [user, last, threads] = ["a-user", "z-last", "threads"].map(|name| cgroup.below(name));
    for path in [user.clone(), user.join("cgroup.procs"), cgroup.0.join("cgroup.procs")] {
        std::os::unix::fs::chown(path, Some(65534), None).unwrap();
    }
    let nest = |levels: u32, length: u32| {
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", NEST]).arg(&user).args([levels.to_string(), length.to_string()]);
        python
    };
    succeed(&mut as_nobody(&nest(2000, 1)));
    // Longer than PATH_MAX. Root starts the program there, because only root may make a network namespace.
    let mut deep = Holder::start(nest(40, 250).args(elsewhere(holder())));
    let mut deeper = Holder::start(nest(1100, 2).args(elsewhere(holder())));
    let mut victim = Holder::start(within(&last, "env".as_ref()).args(elsewhere(holder())));
    let result = ka_cgroup(&["attach", "-p", "280,30,5"], &cgroup.0);
    // If cgroups are nested that deeply, ka cannot tell whether a socket belongs to this cgroup.
    assert_eq!(result.0, 1, "{result:?}");
    assert!(result.1.ends_with("; 6 sockets set, 0 unchanged, 3 failed\n"), "{result:?}");
    assert!(result.2.contains("3 sockets: their cgroups are nested too deeply to tell"), "{result:?}");
    for holder in [&mut deep, &mut victim] {
        holder.assert_all(280, 30, 5);
        holder.open();
        holder.assert_all(280, 30, 5);
    }
    // The command in the message reaches those sockets.
    assert!(result.2.contains("use ka attach PID before ka cgroup attach"), "{result:?}");
    detach(&cgroup.0);
    let options = outcome(ka().args(["attach", "-p", "280,30,5", &deeper.pid().to_string()]));
    assert!(
        options.0 == 0
            && options.1.ends_with("3 sockets set to 280,30,5 (mode force), 0 unchanged, 0 failed\n"),
        "{options:?}"
    );
    deeper.assert_all(280, 30, 5);
    deeper.end();
    attached(&ka_cgroup(&["attach", "-p", "280,30,5"], &cgroup.0));
    // All are listed, even under a long name.
    attached(&ka_cgroup(&["attach", "-p", "280,30,5"], &last));
    let (status, out, err) = ka_cgroup(&["ls", "--json"], &cgroup.0);
    assert_eq!((status, err.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<Vec<Value>>(&out).unwrap().len(), 2, "{out}");
    let long = (0..40).fold(user.clone(), |path, _| path.join("n".repeat(250)));
    assert!(long.as_os_str().len() > 10_000);
    attached(&ka_cgroup(&["attach", "-p", "280,30,5"], &long));
    let (status, out, err) = ka_cgroup(&["ls", "--json"], &long);
    assert_eq!((status, err.as_str()), (0, ""));
    let rows = serde_json::from_str::<Vec<Value>>(&out).unwrap();
    assert!(rows.len() == 2 && rows[1]["cgroup"].as_str().unwrap().len() > 10_000, "{out}");
    assert_eq!((&rows[0]["above"], &rows[1]["above"]), (&Value::Bool(true), &Value::Bool(false)));
    detach(&long);

    // A threaded cgroup lists only its threads.
    let thread = threads.join("thread");
    fs::create_dir(&thread).unwrap();
    fs::write(thread.join("cgroup.type"), "threaded").unwrap();
    let mut threaded = Holder::start(within(&threads, "env".as_ref()).args(elsewhere(holder())));
    fs::write(thread.join("cgroup.threads"), threaded.pid().to_string()).unwrap();
    detach(&cgroup.0);
    threaded.open();
    assert_eq!(attached(&ka_cgroup(&["attach"], &thread)), "1 socket set, 0 unchanged, 0 failed");
    detach(&thread);
    // Without the right to read all folders, ka reports the unreadable ones and sets the rest.
    fs::set_permissions(&user, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--bounding-set", "-dac_override,-dac_read_search"]);
    wrapped.arg(ka().get_program()).args(["cgroup", "attach", "-p", "50,5,5"]).arg(&cgroup.0);
    let (status, out, err) = outcome(&mut wrapped);
    assert!(status == 1 && out.ends_with("; some were not examined\n"), "{out}{err}");
    assert!(err.contains("1 cgroup was not examined") && err.contains("CAP_DAC_READ_SEARCH"), "{err}");
    victim.assert_all(50, 5, 5);
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--bounding-set", "-dac_override,-dac_read_search"]);
    let (status, out, err) = outcome(wrapped.arg(ka().get_program()).args(["cgroup", "ls"]).arg(&cgroup.0));
    assert!(
        status == 1 && out.contains("/z-last") && err.contains("1 cgroup was not examined"),
        "{out}{err}"
    );
}

/// The test has more network namespaces than ka may have descriptors.
#[test]
fn one_network_namespace_is_open_at_a_time() {
    if !in_own_cgroup_tree("one_network_namespace_is_open_at_a_time") {
        return;
    }
    let cgroup = Cgroup::new();
    let start = || Holder::start(within(&cgroup.0, "env".as_ref()).args(elsewhere(holder())));
    let mut holders: Vec<_> = (0..20).map(|_| start()).collect();
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=16").arg(ka().get_program()).args(["cgroup", "attach", "-p", "280,30,5"]);
    assert_eq!(attached(&outcome(limited.arg(&cgroup.0))), "60 sockets set, 0 unchanged, 0 failed");
    for holder in &mut holders {
        holder.assert_all(280, 30, 5);
    }
}

/// A program holds a socket's lock forever, and the kernel waits for the lock. ka sets the sockets of other network
/// namespaces, names the socket that it left out, and ends at a signal.
#[test]
fn a_held_lock_does_not_block_the_sweep() {
    if !in_own_cgroup_tree("a_held_lock_does_not_block_the_sweep") {
        return;
    }
    let cgroup = Cgroup::new();
    let locker = compile(cc().arg("-pthread"), &source("locker"), Linkage::Nothing);
    let below = cgroup.below("a-user");
    let mut command = within(&below, "env".as_ref());
    command.args(elsewhere(&locker)).args(["0", "evil", "1"]);
    let mut attacker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    if Lines::new("locker", attacker.stdout.take().unwrap()).next().is_none() {
        attacker.wait().unwrap();
        return skip("no userfaultfd(2) here");
    }
    let mut attacker = Running(attacker);
    let last = cgroup.below("z-last");
    let mut victim = Holder::start(within(&last, "env".as_ref()).args(elsewhere(holder())));
    let mut command = ka();
    command.args(["cgroup", "attach", "--foreground", "-p", "280,30,5"]).arg(&cgroup.0);
    let mut running =
        Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    // New sockets have the policy before the sweep of the open sockets ends.
    eventually("the policy is in force", || listed(&cgroup).len() == 1);
    victim.open();
    assert!(victim.look().iter().any(|options| options.on && options.timers == [280, 30, 5, 0]));
    let line = Lines::new("ka", running.0.stdout.take().unwrap()).expect("the result of the sweep");
    assert!(line.ends_with(" 0 failed; some were not examined"), "{line}");
    victim.assert_all(280, 30, 5);
    signal_child(&running.0, libc::SIGTERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    let mut err = String::new();
    std::io::Read::read_to_string(&mut running.0.stderr.take().unwrap(), &mut err).unwrap();
    assert_eq!(err.matches("(evil): its socket fd ").count(), 1, "{err}");
    assert!(err.contains(" did not answer within 2 s (a program holds its lock)"), "{err}");
    assert!(listed(&cgroup).is_empty());
    victim.open();
    victim.end();
    drop(attacker.0.stdin.take());
    attacker.0.wait().unwrap();
}

/// Returns the number of cgroups of `ka run`, which are below the test's own cgroup.
fn runs(cgroup: &Cgroup) -> usize {
    let names = fs::read_dir(&cgroup.0).unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.as_encoded_bytes().starts_with(b"ka-run-")).count()
}

fn run_within(cgroup: &Cgroup, args: &[&str]) -> Command {
    let mut command = within(&cgroup.0, ka().get_program().as_ref());
    command.args(["run", "--via", "cgroup"]).args(args);
    command
}

/// The test kills the process that would remove a cgroup of `ka run --via cgroup`. ka keeps a cgroup with a process in
/// it. ka also keeps an empty cgroup with a similar name (ka-run-NUMBER) that another program made.
#[test]
fn empty_cgroups_that_ka_run_left_are_removed() {
    if !in_own_cgroup_tree("empty_cgroups_that_ka_run_left_are_removed") {
        return;
    }
    let cgroup = Cgroup::new();
    let holder = Holder::start(&mut run_within(&cgroup, &["--", holder().to_str().unwrap()]));
    let other = cgroup.below("ka-run-999999999");
    // The waiting process has its own session, in the cgroup of ka run.
    let remover = fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap();
    let remover: i32 = remover.trim().parse().unwrap();
    let left = cgroup.0.join(format!("ka-run-{}", holder.pid()));
    let (status, out, _) = outcome(ka().args(["cgroup", "detach", "--all"]));
    assert!(status == 0 && left.exists(), "{out}");
    kill(remover, libc::SIGKILL);
    holder.end();
    eventually("the cgroup has no process", || {
        fs::read_to_string(left.join("cgroup.procs")).is_ok_and(|procs| procs.is_empty())
    });
    let (status, out, err) = outcome(ka().args(["cgroup", "detach", "--all"]));
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        out.ends_with(&format!(
            "/ka-run-{}: removed the empty cgroup\n",
            left.display().to_string().rsplit('-').next().unwrap()
        )),
        "{out}"
    );
    assert!(!left.exists() && other.exists());
}

/// Tests programs that cannot be preloaded, too. ka becomes the program, with the same PID, returns its status, and
/// leaves nothing behind.
#[test]
fn run_via_cgroup_runs_the_program_in_its_own_cgroup() {
    if !in_own_cgroup_tree("run_via_cgroup_runs_the_program_in_its_own_cgroup") {
        return;
    }
    let cgroup = Cgroup::new();
    for program in [holder(), static_holder(), go_holder()] {
        let program = program.to_str().unwrap();
        let mut holder = Holder::start(&mut run_within(&cgroup, &["-p", "280,30,5", "--", program]));
        holder.open();
        holder.assert_all(280, 30, 5);
        assert_eq!(runs(&cgroup), 1);
        let own = fs::read_to_string(format!("/proc/{}/cgroup", holder.pid())).unwrap();
        assert!(own.contains(&format!("/ka-run-{}\n", holder.pid())), "{own}");
        let name = fs::read_to_string(format!("/proc/{}/comm", holder.pid())).unwrap();
        assert!(program.rsplit('/').next().unwrap().starts_with(name.trim_end()), "{name}");
        let rows = listed(&cgroup);
        assert!(rows.len() == 1 && rows[0]["pinned"].is_null(), "{rows:?}");
        let (status, _, err) = ka_cgroup(&["detach"], &cgroup.0.join(format!("ka-run-{}", holder.pid())));
        assert!(status == 1 && err.contains("The policy ends with ka run --via cgroup"), "{err}");
        holder.end();
        eventually("its cgroup is removed", || runs(&cgroup) == 0);
    }
    // The variables apply as for every way, and the exit status is that of the program.
    let mut shell = run_within(&cgroup, &["-v", "-c", "3", "--", "sh", "-c", "exit 7"]);
    let (status, _, err) = outcome(shell.env("KA_POLICY", "99,9,9").env("KA_MODE", "default"));
    assert!(status == 7 && err.ends_with(", idle=99,intvl=9,cnt=3, mode default\n"), "{err}");
    // A daemon that outlives the program keeps the policy.
    let mut shell = run_within(&cgroup, &["--", "sh", "-c", "sleep 1 & exit 3"]);
    assert_eq!(shell.stdout(Stdio::null()).status().unwrap().code(), Some(3));
    assert_eq!((runs(&cgroup), listed(&cgroup).len()), (1, 1));
    eventually("its cgroup is removed", || runs(&cgroup) == 0);
    // A program that cannot be executed leaves nothing behind either.
    let empty = cgroup.0.join("ka-run-999999999");
    fs::create_dir(&empty).unwrap();
    let odd = scratch("odd");
    fs::write(&odd, b"\x7fELF").unwrap();
    fs::set_permissions(&odd, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (status, _, err) = outcome(&mut run_within(&cgroup, &["--", odd.to_str().unwrap()]));
    assert_eq!(status, 126, "{err}");
    eventually("the cgroups are removed, and one that was left before", || runs(&cgroup) == 0);
    for (args, variable, expected) in [
        (&["--mode", "floor", "--", "true"][..], "", "mode floor is not available in cgroups"),
        (&["--", "true"], "peer=10.0.0.0/8 skip", "KA_RULES is not available in cgroups"),
    ] {
        let (status, _, err) = outcome(run_within(&cgroup, args).env("KA_RULES", variable));
        assert!(status == 125 && err.contains(expected), "{err}");
    }
    let folder = PublicFolder::new("run-cgroup");
    copy_program(release().join("ka"), folder.join("ka"));
    let mut nobodys = Command::new(folder.join("ka"));
    let (status, _, err) = outcome(&mut as_nobody(nobodys.args(["run", "--via", "cgroup", "true"])));
    assert!(status == 125 && err.contains("needs CAP_BPF and CAP_NET_ADMIN"), "{err}");
}

/// A process that ignores SIGCHLD cannot wait for its children. The program ignores SIGCHLD too, as it inherits that.
#[test]
fn run_via_cgroup_works_while_sigchld_is_ignored() {
    if !in_own_cgroup_tree("run_via_cgroup_works_while_sigchld_is_ignored") {
        return;
    }
    let cgroup = Cgroup::new();
    // A trap of the shell does not suffice, because Debian's shell does not ignore SIGCHLD.
    let mut env = within(&cgroup.0, Path::new("env"));
    env.arg("--ignore-signal=CHLD").arg(ka().get_program());
    env.args(["run", "--via", "cgroup", "-d", "45", "--"]);
    let mut holder = Holder::start(env.arg(holder()));
    holder.assert_all(45, 10, 6);
    let status = fs::read_to_string(format!("/proc/{}/status", holder.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    assert_ne!(u64::from_str_radix(ignored, 16).unwrap() & 1 << (libc::SIGCHLD - 1), 0, "{status}");
    assert_eq!(children(holder.pid()), Vec::<i32>::new());
    holder.end();
    eventually("its cgroup is removed", || runs(&cgroup) == 0);
}

/// An inherited socket belongs to the cgroup in which it was created, so ka sets it before the program starts.
#[test]
fn run_via_cgroup_sets_inherited_sockets() {
    if !in_own_cgroup_tree("run_via_cgroup_sets_inherited_sockets") {
        return;
    }
    let cgroup = Cgroup::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: fcntl(2) changes only the flag of this descriptor.
    unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(outcome(&mut run_within(&cgroup, &["-d", "45", "--", "true"])).0, 0);
    assert_eq!(keepalive_options(listener.as_raw_fd())[..2], [Ok(1), Ok(45)]);
    eventually("its cgroup is removed", || runs(&cgroup) == 0);
}

fn by_kernel(args: &[&str]) -> (i32, String, String) {
    outcome(ka().args(["attach", "--all", "--via", "bpf"]).args(args))
}

/// The pass includes connections that were not accepted yet. The modes work as for the other ways.
#[test]
fn attach_via_bpf_sets_every_socket_of_a_network_namespace() {
    if !in_own_cgroup_tree("attach_via_bpf_sets_every_socket_of_a_network_namespace") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let queued = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut holder = Holder::start(Command::new(holder()).arg("keepalive"));
    let all = |holder: &mut Holder| -> Vec<_> {
        let theirs = holder.look().into_iter().map(|options| (options.on, options.timers));
        let ours = [listener.as_raw_fd(), queued.as_raw_fd()].map(keepalive_options).map(|six| {
            let [on, timers @ .., _] = six;
            (on == Ok(1), timers.map(Result::unwrap))
        });
        theirs.chain(ours).collect()
    };
    let before = all(&mut holder);
    let (status, out, err) = by_kernel(&["--dry-run"]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        out.ends_with("6 sockets would be set to 60,10,6 (mode force), 0 unchanged, 0 failed\n"),
        "{out}"
    );
    assert_eq!(out.matches(": would be set from ").count(), 6, "{out}");
    assert_eq!(all(&mut holder), before);

    let said = |args: &[&str]| {
        let (status, out, err) = by_kernel(args);
        assert_eq!((status, err.as_str()), (0, ""));
        // Leaves the policy out, because other tests check it.
        let line = out.lines().last().unwrap();
        let (set, policy) = line.split_once(" to ").unwrap();
        format!("{set}{}", policy.split_once(" (mode ").unwrap().1.split_once(')').unwrap().1)
    };
    assert_eq!(said(&["--mode", "default", "-p", "60,4,6"]), "5 sockets set, 1 unchanged, 0 failed");
    let theirs = (true, [10, 5, 2, 0]);
    let ours = (true, [60, 4, 6, 0]);
    assert_eq!(all(&mut holder), [ours, theirs, ours, ours, ours]);
    // This connection was in the accept queue.
    assert_eq!(
        keepalive_options(listener.accept().unwrap().0.as_raw_fd())[..5],
        [Ok(1), Ok(60), Ok(4), Ok(6), Ok(0)]
    );
    // Wait until the dropped end is closed, which needs the acknowledgement of its FIN. Its peer is then half closed.
    eventually("the connection is closed", || {
        stdout(Command::new("ss").args(["-Htn", "state", "fin-wait-1"])).is_empty()
    });
    assert_eq!(said(&["--mode", "floor", "-p", "60,4,6"]), "1 socket set, 4 unchanged, 0 failed");
    assert_eq!(all(&mut holder)[1], (true, [10, 4, 2, 0]));
    let port = holder.port.to_string();
    assert_eq!(said(&["-p", "70,7,7", "--port", &port]), "3 sockets set, 0 unchanged, 0 failed");
    let set = (true, [70, 7, 7, 0]);
    assert_eq!(all(&mut holder), [set, set, set, ours, ours]);
    assert_eq!(said(&["-p", "70,7,7", "--port", &port]), "0 sockets set, 3 unchanged, 0 failed");
    assert_eq!(said(&["-p", "70,7,7", "-u", "auto"]), "5 sockets set, 0 unchanged, 0 failed");
    assert_eq!(all(&mut holder), [(true, [70, 7, 7, 119_000]); 5]);
    assert_eq!(said(&["-p", "user_timeout=0,keep"]), "5 sockets set, 0 unchanged, 0 failed");
    if has_rto_max() {
        let ours = || [&listener.as_raw_fd(), &queued.as_raw_fd()].map(|fd| rto_max(*fd));
        assert_eq!(said(&["-p", "70,7,7", "-r", "2s"]), "5 sockets set, 0 unchanged, 0 failed");
        assert_eq!((command::rto_maxima(holder.pid()), ours()), (vec![2000; 3], [2000; 2]));
        assert_eq!(said(&["-p", "70,7,7", "-r", "2s"]), "0 sockets set, 5 unchanged, 0 failed");
        assert_eq!(
            said(&["--mode", "floor", "-p", "70,7,7", "-r", "5s"]),
            "0 sockets set, 5 unchanged, 0 failed"
        );
        assert_eq!(
            said(&["--mode", "force", "-p", "70,7,7", "-r", "5s"]),
            "5 sockets set, 0 unchanged, 0 failed"
        );
        assert_eq!((command::rto_maxima(holder.pid()), ours()), (vec![5000; 3], [5000; 2]));
        // 14 s + 2 s * 5 with 15 retransmissions. The kernel rounds the value up to a multiple of its tick.
        assert_eq!(said(&["-p", "14,2,5", "-r", "auto"]), "5 sockets set, 0 unchanged, 0 failed");
        let is_automatic = |value: &i32| (1750..1760).contains(value);
        assert!(command::rto_maxima(holder.pid()).iter().chain(&ours()).all(is_automatic), "{:?}", ours());
        assert_eq!(said(&["-p", "14,2,5", "-r", "auto"]), "0 sockets set, 5 unchanged, 0 failed");
        assert_eq!(said(&["-p", "70,7,7"]), "5 sockets set, 0 unchanged, 0 failed");
    }
    assert_eq!(said(&["-p", "off"]), "5 sockets set, 0 unchanged, 0 failed");
    assert_eq!(all(&mut holder), [(false, [70, 7, 7, 0]); 5]);
    set_option(queued.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 900_000);
    assert_eq!(said(&["-p", "60,10,6"]), "5 sockets set, 0 unchanged, 0 failed");
    assert_eq!(keepalive_options(queued.as_raw_fd())[4], Ok(120_000));

    let (_, out, _) = by_kernel(&["--json", "-p", "61,10,6"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let sockets = report["sockets"].as_array().unwrap();
    assert_eq!((report["set"].as_u64(), sockets.len()), (Some(5), 5), "{report}");
    assert_eq!(sockets.iter().filter(|socket| socket["pid"] == holder.pid()).count(), 3, "{report}");
    for (args, expected) in [
        (&["attach", "--via", "bpf", "1"][..], "it needs --all"),
        (&["attach", "--via", "bpf", "--all", "--follow"], "use ka cgroup attach for later sockets"),
        (&["attach", "--via", "bpf", "--all", "--spread", "1s"], "--spread has no effect"),
        (
            &["attach", "--via", "bpf", "--all", "-p", "idle=5,user_timeout=auto,keep"],
            "user_timeout=auto and rto_max=auto need idle, intvl and cnt",
        ),
        (
            &["attach", "--via", "bpf", "--all", "-p", "idle=5,rto_max=auto,keep"],
            "user_timeout=auto and rto_max=auto need idle, intvl and cnt",
        ),
    ] {
        let (status, out, err) = outcome(ka().args(args));
        assert!(status == 2 && out.is_empty() && err.contains(expected), "{args:?}: {status} {err}");
    }
}

/// There are more sockets than the kernel reports in one read. Each is set, and counted once.
#[test]
fn attach_via_bpf_counts_each_of_many_sockets_once() {
    if !in_own_cgroup_tree("attach_via_bpf_counts_each_of_many_sockets_once") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let count = raise_descriptor_limit().min(9000) / 2 - 50;
    let connect = |_| {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let connections: Vec<_> = (0..count).map(connect).collect();
    let all = 2 * count + 1;
    assert_eq!(
        by_kernel(&[]).1,
        format!("{all} sockets set to 60,10,6 (mode force), 0 unchanged, 0 failed\n")
    );
    assert_eq!(
        by_kernel(&[]).1,
        format!("0 sockets set to 60,10,6 (mode force), {all} unchanged, 0 failed\n")
    );
    for (client, server) in &connections {
        assert_eq!([client, server].map(|socket| keepalive_options(socket.as_raw_fd())[1]), [Ok(60), Ok(60)]);
    }
}

/// No process has the sockets in an accept queue, so ka cannot duplicate them to read their options.
#[test]
fn ls_lists_the_options_of_sockets_without_a_process() {
    if !in_own_cgroup_tree("ls_lists_the_options_of_sockets_without_a_process") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for (name, value) in [(libc::TCP_KEEPIDLE, 33), (libc::TCP_KEEPINTVL, 3), (libc::TCP_USER_TIMEOUT, 7000)]
    {
        set_option(listener.as_raw_fd(), libc::IPPROTO_TCP, name, value);
    }
    set_option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    let _queued = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (status, out, err) = outcome(ka().args(["ls", "--json"]));
    assert_eq!((status, err.as_str()), (0, ""));
    let sockets: Vec<Value> = serde_json::from_str(&out).unwrap();
    let nobodys: Vec<_> = sockets.iter().filter(|socket| socket["pid"].is_null()).collect();
    let [socket] = nobodys[..] else { panic!("{out}") };
    let options = ["keepalive", "idle", "intvl", "cnt", "user_timeout_ms"].map(|key| socket[key].clone());
    assert_eq!(Value::from(options.to_vec()), serde_json::json!([true, 33, 3, 9, 7000]), "{socket}");
    // Without the rights to ask the kernel, ka asks the processes, and reports values that it cannot know as null.
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--bounding-set", "-perfmon,-sys_admin"]);
    let (_, out, _) = outcome(wrapped.arg(ka().get_program()).args(["ls", "--json"]));
    let sockets: Vec<Value> = serde_json::from_str(&out).unwrap();
    let socket = sockets.iter().find(|socket| socket["pid"].is_null()).unwrap();
    assert!(socket["idle"].is_null() && socket["keepalive"] == true, "{socket}");
    assert!(sockets.iter().any(|socket| socket["idle"] == 33), "{out}");
}
