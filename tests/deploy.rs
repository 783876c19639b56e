//! Tests the files in deploy/, which apply the policy to many programs, as systemd, Docker and Kubernetes use them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ka_test::artifact::{release, shim};
use ka_test::child::{stderr, stdout, succeed};
use ka_test::compiler::allowing;
use ka_test::log::skip;
use ka_test::namespace::{in_own_network_namespace, is_root, with_own_etc};
use ka_test::path::{PublicFolder, copy_program, root, scratch, target};
use serde_json::{Value, json};

fn deploy(name: &str) -> PathBuf {
    root().join("deploy").join(name)
}

/// Python code that prints the keepalive settings of a new socket.
const ASK: &str = "import socket as s; a = s.socket(); \
    print(a.getsockopt(s.SOL_SOCKET, s.SO_KEEPALIVE), *(a.getsockopt(6, o) for o in (4, 5, 6)))";

/// Runs a script in a mount namespace with its own /etc. The shim is in a folder there that only root can change.
fn with_own_etc_and_shim(script: &str) -> Output {
    // The default mode of a tmpfs is not 755.
    with_own_etc(&format!(
        "mount -t tmpfs -o mode=755 none /mnt && cp {} /mnt/libka_preload.so && rm -f /etc/ld.so.preload && \
         tool={} && lib=/mnt/libka_preload.so && {script}",
        shim().display(),
        deploy("ld-so-preload").display()
    ))
}

/// Runs a script in that namespace, which must succeed. Returns its output.
fn output_with_own_etc(script: &str) -> String {
    let output = with_own_etc_and_shim(script);
    assert!(output.status.success(), "{script}: {output:?}");
    assert_eq!(stderr(&output), "", "{script}");
    String::from_utf8(output.stdout).unwrap()
}

fn can_have_own_etc() -> bool {
    if !is_root() {
        skip("only root may have an /etc of its own");
    }
    is_root()
}

#[test]
fn ld_so_preload_adds_and_removes_the_shim_for_every_program() {
    if !can_have_own_etc() {
        return;
    }
    if !in_own_network_namespace("ld_so_preload_adds_and_removes_the_shim_for_every_program") {
        return;
    }
    let before = fs::read("/etc/ld.so.preload").ok();
    let said = output_with_own_etc(&format!(
        "echo KA_POLICY=30,5,3 >/etc/ka.conf
         $tool install $lib; stat -c '%u %a' /etc/ld.so.preload; cat /etc/ld.so.preload
         python3 -c '{ASK}'; env -i python3 -c '{ASK}'
         $tool install $lib; $tool status $lib
         $tool remove $lib; $tool remove $lib; $tool status $lib || echo status $?
         python3 -c '{ASK}'; ls -a /etc | grep ld.so.pre || echo nothing is left"
    ));
    let expected = "\
        /mnt/libka_preload.so is in /etc/ld.so.preload: programs that start from now on use it\n\
        0 644\n\
        /mnt/libka_preload.so\n\
        1 30 5 3\n\
        1 30 5 3\n\
        /mnt/libka_preload.so is in /etc/ld.so.preload already\n\
        /mnt/libka_preload.so is in /etc/ld.so.preload, and programs start with it\n\
        /mnt/libka_preload.so is no longer in /etc/ld.so.preload: programs that start from now on run without it\n\
        /mnt/libka_preload.so is not in /etc/ld.so.preload\n\
        /mnt/libka_preload.so is not in /etc/ld.so.preload\n\
        status 1\n\
        0 7200 75 9\n\
        nothing is left\n";
    assert_eq!(said, expected);
    assert_eq!(fs::read("/etc/ld.so.preload").ok(), before, "the machine's own file was changed");
}

#[test]
fn ld_so_preload_keeps_other_entries() {
    if !can_have_own_etc() {
        return;
    }
    // The other library is a copy of the shim under another name.
    let said = output_with_own_etc(
        "cp $lib /mnt/other.so; chmod 600 /etc/ka.conf 2>/dev/null
         printf '# ours\\n/mnt/other.so\\n\\n' >/etc/ld.so.preload
         $tool install $lib >/dev/null; cat /etc/ld.so.preload; echo ==
         $tool remove $lib >/dev/null; cat /etc/ld.so.preload; echo ==
         printf '/mnt/other.so:%s\\t/mnt/other.so' $lib >/etc/ld.so.preload
         $tool install $lib; $tool remove $lib >/dev/null; cat /etc/ld.so.preload; echo ==
         printf '# %s\\n/mnt/other.so' $lib >/etc/ld.so.preload
         $tool install $lib >/dev/null; cat /etc/ld.so.preload; echo; echo ==
         $tool remove $lib >/dev/null; cat /etc/ld.so.preload",
    );
    let expected = "\
        /mnt/libka_preload.so\n# ours\n/mnt/other.so\n\n==\n\
        # ours\n/mnt/other.so\n\n==\n\
        /mnt/libka_preload.so is in /etc/ld.so.preload already\n\
        /mnt/other.so /mnt/other.so\n==\n\
        /mnt/libka_preload.so\n# /mnt/libka_preload.so\n/mnt/other.so\n==\n\
        # /mnt/libka_preload.so\n/mnt/other.so\n";
    assert_eq!(said, expected);
}

/// Without an argument, the script installs the library of the package, or of `make install`.
#[test]
fn ld_so_preload_finds_the_library_that_was_installed() {
    if !can_have_own_etc() {
        return;
    }
    let said = output_with_own_etc(
        "{ [ ! -d /usr/lib/ka ] || mount -t tmpfs none /usr/lib/ka; }; mount -t tmpfs -o mode=755 none /usr/local/lib
         $tool install 2>&1; $tool install /usr/local/lib/none.so 2>&1
         mkdir /usr/local/lib/ka; cp $lib /usr/local/lib/ka
         $tool install | head -n 1; cat /etc/ld.so.preload; $tool status; $tool remove
         $tool install >/dev/null; rm -r /usr/local/lib/ka; $tool remove 2>/dev/null
         ls -a /etc | grep ld.so.pre || echo nothing is left",
    );
    let expected = "\
        ld-so-preload: /usr/lib/ka/libka_preload.so: no such file; \
        if it is elsewhere: ld-so-preload install LIBRARY\n\
        ld-so-preload: /usr/local/lib/none.so: no such file; \
        if it is elsewhere: ld-so-preload install LIBRARY\n\
        /usr/local/lib/ka/libka_preload.so is in /etc/ld.so.preload: programs that start from now on use it\n\
        /usr/local/lib/ka/libka_preload.so\n\
        /usr/local/lib/ka/libka_preload.so is in /etc/ld.so.preload, and programs start with it\n\
        /usr/local/lib/ka/libka_preload.so is no longer in /etc/ld.so.preload: programs that start from now on run without it\n\
        /usr/local/lib/ka/libka_preload.so is no longer in /etc/ld.so.preload: programs that start from now on run without it\n\
        nothing is left\n";
    assert_eq!(said, expected);
}

/// A user has a link to the library in a folder that belongs to the user, and changes the link after the installation.
#[test]
fn ld_so_preload_resolves_symbolic_links() {
    if !can_have_own_etc() {
        return;
    }
    let said = output_with_own_etc(&format!(
        "mkdir /mnt/u /mnt/root; cp $lib /mnt/root; chown 65534 /mnt/u; user='setpriv --reuid 65534 --clear-groups'
         echo '#include <unistd.h>
         void __attribute__((constructor)) evil(void) {{ if (!geteuid()) write(1, \"evil \", 5); }}' |
             $user cc -x c -shared -fPIC -o /mnt/u/evil.so -
         cp /usr/bin/cat /mnt/setuid; chmod 4755 /mnt/setuid
         repoint() {{ $user ln -sfn \"$1\" /mnt/u/link; }}
         repoint $lib; $tool install /mnt/u/link | head -n 1; cat /etc/ld.so.preload; repoint evil.so
         python3 -c '{ASK}'; $user /mnt/setuid /proc/self/maps | grep -oE 'evil|/[^ ]*/libka_preload.so' | sort -u
         $tool status /mnt/u/link; $tool install /mnt/u/link 2>&1; $tool remove /mnt/u/link; $tool status
         repoint $lib; $tool remove /mnt/u/link; echo == a folder
         repoint /mnt/root; $tool install /mnt/u/link/libka_preload.so | head -n 1; repoint /mnt
         $tool status; $tool remove; echo == root links to the user
         ln -s /mnt/u/evil.so /mnt/link; $tool install /mnt/link 2>&1; echo == listed by hand
         repoint $lib; printf '/mnt/u/link /mnt/root/libka_preload.so' >/etc/ld.so.preload
         $tool status /mnt/u/link 2>&1; $tool install /mnt/u/link | head -n 1; cat /etc/ld.so.preload
         echo /mnt/u/link >/etc/ld.so.preload; $tool remove /mnt/u/link; ls -a /etc | grep ld.so.pre || echo nothing is left"
    ));
    let expected = "\
        /mnt/libka_preload.so is in /etc/ld.so.preload: programs that start from now on use it\n\
        /mnt/libka_preload.so\n\
        1 60 10 6\n\
        /mnt/libka_preload.so\n\
        /mnt/u/evil.so is not in /etc/ld.so.preload\n\
        ld-so-preload: /mnt/u/evil.so: must belong to root; it belongs to user 65534\n\
        /mnt/u/evil.so is not in /etc/ld.so.preload\n\
        /mnt/libka_preload.so is in /etc/ld.so.preload, and programs start with it\n\
        /mnt/libka_preload.so is no longer in /etc/ld.so.preload: programs that start from now on run without it\n\
        == a folder\n\
        /mnt/root/libka_preload.so is in /etc/ld.so.preload: programs that start from now on use it\n\
        /mnt/root/libka_preload.so is in /etc/ld.so.preload, and programs start with it\n\
        /mnt/root/libka_preload.so is no longer in /etc/ld.so.preload: programs that start from now on run without it\n\
        == root links to the user\n\
        ld-so-preload: /mnt/u/evil.so: must belong to root; it belongs to user 65534\n\
        == listed by hand\n\
        ld-so-preload: /etc/ld.so.preload contains /mnt/u/link, which has symbolic links: \
        install it again to list /mnt/libka_preload.so\n\
        /mnt/libka_preload.so is in /etc/ld.so.preload: programs that start from now on use it\n\
        /mnt/libka_preload.so\n/mnt/root/libka_preload.so\n\
        /mnt/libka_preload.so is no longer in /etc/ld.so.preload: programs that start from now on run without it\n\
        nothing is left\n";
    assert_eq!(said, expected);
}

/// Each command must fail with its message, and leave the list unchanged.
#[test]
fn ld_so_preload_rejects_libraries_that_would_break_programs() {
    if !can_have_own_etc() {
        return;
    }
    let cases = [
        ("", "$tool install /mnt/none.so", "/mnt/none.so: no such file"),
        ("", "$tool install libka_preload.so", "give the absolute path"),
        ("cp $lib '/mnt/a b.so'", "$tool install '/mnt/a b.so'", "a blank, a colon, a # or a backslash"),
        ("", "$tool remove '/mnt/a b.so'", "a blank, a colon, a # or a backslash"),
        ("echo text >/mnt/text.so", "$tool install /mnt/text.so", "sh under /mnt/text.so: ERROR: ld.so"),
        ("chmod 775 $lib", "$tool install $lib", "must be writable only by root; its mode is 775"),
        ("chown 65534 $lib", "$tool install $lib", "must belong to root; it belongs to user 65534"),
        ("chmod 777 /mnt", "$tool install $lib", "/mnt: must be writable only by root; its mode is 777"),
        ("chmod 700 $lib", "$tool install $lib", "must be readable by every user"),
        ("echo KA_POLICY=0,0,0 >/etc/ka.conf", "$tool install $lib", "ka: KA_POLICY=\"0,0,0\""),
        ("ln -s /mnt/list /etc/ld.so.preload", "$tool install $lib", "is a symbolic link"),
        (": >/etc/ld.so.preload.ka-new", "$tool install $lib", "another ld-so-preload is running"),
        (
            "echo /mnt/none.so >/etc/ld.so.preload",
            "$tool install $lib; said=$?; echo >/etc/ld.so.preload; (exit $said)",
            "libka_preload.so: ERROR: ld.so",
        ),
        // This library kills each program that starts with it.
        (
            "echo 'void __attribute__((constructor)) end(void) { __builtin_trap(); }' | \
             cc -x c -shared -fPIC -o /mnt/trap.so - 2>/dev/null",
            "$tool install /mnt/trap.so",
            "sh does not start under /mnt/trap.so: status 13",
        ),
        // The user nobody cannot write the list, and perhaps cannot read the sources. So use a copy.
        (
            "install -m 755 $tool /mnt/tool",
            "setpriv --reuid 65534 --clear-groups /mnt/tool install $lib",
            "only root may change",
        ),
        ("", "$tool", "usage: ld-so-preload install|remove|status"),
        ("", "$tool instal $lib", "usage: ld-so-preload install|remove|status"),
        ("", "$tool install $lib more", "usage: ld-so-preload install|remove|status"),
    ];
    let scripts: Vec<_> = cases
        .iter()
        .map(|(before, command, _)| {
            format!(
                "({before}\n{command}) 2>&1; echo status $?; cat /etc/ld.so.preload 2>/dev/null; \
                 rm -f /etc/ld.so.preload* /etc/ka.conf; chmod 755 /mnt $lib; chown 0 $lib; echo ===="
            )
        })
        .collect();
    let said = output_with_own_etc(&scripts.join("\n"));
    let said: Vec<_> = said.split("====\n").collect();
    assert_eq!(said.len(), cases.len() + 1);
    for (said, (before, command, words)) in said.iter().zip(cases) {
        assert!(said.contains(words), "{before}; {command}: {said}");
        assert!(said.trim_end().ends_with("status 2"), "{before}; {command}: the list has changed: {said}");
    }
}

/// This library works in LD_PRELOAD, but not in the file. The script must restore the list without starting a program.
#[test]
fn ld_so_preload_restores_the_list_if_programs_do_not_start() {
    if !can_have_own_etc() {
        return;
    }
    let source = "#include <stdlib.h>\n#include <unistd.h>\n\
        void __attribute__((constructor)) end(void) { if (!getenv(\"LD_PRELOAD\")) _exit(9); }\n";
    let output = with_own_etc_and_shim(&format!(
        "printf '%s' '{source}' | cc -x c -shared -fPIC -o /mnt/trap.so - && \
         printf '# ours\\n' >/etc/ld.so.preload; $tool install /mnt/trap.so; echo status $?; cat /etc/ld.so.preload; \
         rm /etc/ld.so.preload; $tool install /mnt/trap.so; echo status $?; ls /etc/ld.so.preload"
    ));
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(said, "status 2\n# ours\nstatus 2\n", "{output:?}");
    let words = "programs do not start or load it, or print an error: the old list is restored";
    assert_eq!(stderr(&output).matches(words).count(), 2, "{output:?}");

    // This library also makes /etc read-only, so that the script cannot restore the list.
    let source = source
        .replace("#include <stdlib.h>", "#include <stdlib.h>\n#include <sys/mount.h>")
        .replace("_exit", "mount(0, \"/etc\", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0), _exit");
    let output = with_own_etc_and_shim(&format!(
        "printf '%s' '{source}' | cc -x c -shared -fPIC -o /mnt/trap.so - && $tool install /mnt/trap.so; echo status $?"
    ));
    let said = stderr(&output);
    let words =
        "the old list could not be written back: remove the line /mnt/trap.so from /etc/ld.so.preload";
    assert!(said.contains(words) && !said.contains("is restored"), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "status 2\n", "{output:?}");
}

/// Returns the variables of a drop-in.
fn environment(text: &str) -> Vec<(&str, &str)> {
    text.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once('=')).collect()
}

#[test]
fn systemd_accepts_the_drop_in_and_the_units() {
    let drop_in = fs::read_to_string(deploy("systemd/ka.conf")).unwrap();
    let verify = |drop_in: &str| -> String {
        let folder = scratch("units");
        fs::create_dir_all(folder.join("app.service.d")).unwrap();
        let unit = folder.join("app.service");
        fs::write(&unit, "[Unit]\nDescription=An application\n[Service]\nExecStart=/bin/true\n").unwrap();
        fs::write(folder.join("app.service.d/ka.conf"), drop_in).unwrap();
        stderr(&succeed(Command::new("systemd-analyze").arg("verify").arg(unit)))
    };
    assert_eq!(verify(&drop_in), "");
    assert!(verify(&drop_in.replacen("Environment=", "Enviroment=", 1)).contains("Unknown key"));

    let folder = scratch("template");
    fs::create_dir(&folder).unwrap();
    let template = fs::read_to_string(deploy("systemd/ka-cgroup@.service")).unwrap();
    // The command of the unit must exist.
    let ka = release().join("ka");
    fs::write(folder.join("ka-cgroup@.service"), template.replace("/usr/bin/ka", ka.to_str().unwrap()))
        .unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(folder.join("ka-cgroup@system.slice.service"));
    assert_eq!(stderr(&succeed(&mut verify)), "");
    // The exposure level must be at most 3.9 of 10. systemd's own services have 2 to 9.6.
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--no-pager", "--threshold=39"]);
    succeed(security.arg(deploy("systemd/ka-cgroup@.service")));

    let unit = fs::read_to_string(deploy("systemd/ka-watch.service")).unwrap();
    let path = folder.join("ka-watch.service");
    fs::write(&path, unit.replace("/usr/bin/ka", ka.to_str().unwrap())).unwrap();
    let mut verify = Command::new("systemd-analyze");
    assert_eq!(stderr(&succeed(verify.args(["verify", "--man=no"]).arg(&path))), "");
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--no-pager", "--threshold=29"]);
    succeed(security.arg(deploy("systemd/ka-watch.service")));

    let drop_ins = folder.join("ka-watch.service.d");
    fs::create_dir(&drop_ins).unwrap();
    let metrics = fs::read_to_string(deploy("systemd/ka-watch-metrics.conf")).unwrap();
    fs::write(drop_ins.join("metrics.conf"), metrics.replace("/usr/bin/ka", ka.to_str().unwrap())).unwrap();
    let mut verify = Command::new("systemd-analyze");
    assert_eq!(stderr(&succeed(verify.args(["verify", "--man=no"]).arg(&path))), "");

    // The shim must accept the variables of the drop-in.
    let mut python = Command::new("/usr/bin/python3");
    let variables = environment(&drop_in);
    assert_eq!(variables.first(), Some(&("LD_PRELOAD", "/usr/lib/ka/libka_preload.so")));
    for (name, value) in variables {
        python.env(name, value.replace("/usr/lib/ka/libka_preload.so", shim().to_str().unwrap()));
    }
    let output = succeed(python.args(["-c", ASK]));
    assert_eq!(
        (String::from_utf8_lossy(&output.stdout).trim(), stderr(&output)),
        ("1 280 30 5", String::new())
    );
}

/// Runs the command of the unit as an ordinary user with the capabilities of the unit. It must watch by eBPF and find
/// the process of another user, in another network namespace.
#[test]
fn the_watch_unit_has_the_capabilities_that_it_needs() {
    if !is_root() {
        skip("only root may give capabilities to another user");
        return;
    }
    let unit = fs::read_to_string(deploy("systemd/ka-watch.service")).unwrap();
    let value = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let capabilities: Vec<_> = value("AmbientCapabilities=")
        .split(' ')
        .map(|name| format!("+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    let capabilities = capabilities.join(",");
    let folder = PublicFolder::new("watch-unit");
    copy_program(release().join("ka"), folder.join("ka"));
    let start = value("ExecStart=").replace("/usr/bin/ka", folder.join("ka").to_str().unwrap());
    let victim = "import socket, struct, time; l = socket.socket(); l.bind((\"127.0.0.1\", 0)); l.listen(); \
        c = socket.create_connection(l.getsockname()); s, _ = l.accept(); time.sleep(2); \
        s.setsockopt(1, 13, struct.pack(\"ii\", 1, 0)); s.close(); time.sleep(2)";
    let script = format!(
        "timeout 8 setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps={capabilities} \
         --ambient-caps={capabilities} --bounding-set=-all,{capabilities} --no-new-privs {start} & watch=$!
         sleep 1
         unshare --net sh -c \"ip link set lo up && exec /usr/bin/python3 -c '{}'\" & victim=$!
         echo \"victim $victim\"; wait $watch",
        victim.replace('"', "\\\"")
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), stderr(&output));
    let pid = out.lines().find_map(|line| line.strip_prefix("victim ")).unwrap();
    assert!(out.contains(&format!("python3/{pid} lost 127.0.0.1:")), "{out}{err}");
    assert_eq!(err, "");
}

fn entrypoint() -> Command {
    let mut command = Command::new(deploy("docker/ka-entrypoint"));
    command.env("KA_LIBRARY", shim()).env_remove("LD_PRELOAD");
    command
}

#[test]
fn the_entry_point_runs_the_program_under_the_shim() {
    let run = |command: &mut Command| stdout(command.env("KA_POLICY", "280,30,5")).trim().to_owned();
    assert_eq!(run(entrypoint().args(["/usr/bin/python3", "-c", ASK])), "1 280 30 5");
    let library = shim().display().to_string();
    let show = ["sh", "-c", "echo $LD_PRELOAD"];
    let copy = scratch("other.so");
    copy_program(shim(), &copy);
    let other = copy.to_str().unwrap();
    assert_eq!(run(entrypoint().args(show)), library);
    assert_eq!(run(entrypoint().args(show).env("LD_PRELOAD", other)), format!("{library}:{other}"));
    let both = format!("{other}:{library}");
    assert_eq!(run(entrypoint().args(show).env("LD_PRELOAD", &both)), both);

    // The status is that of the program. If the entry point fails, it is 125, with a message.
    assert_eq!(entrypoint().args(["sh", "-c", "exit 7"]).status().unwrap().code(), Some(7));
    let text = scratch("text.so");
    fs::write(&text, "no library").unwrap();
    let cases = [
        (text.as_path(), vec!["true"], "text.so"),
        (Path::new("/nowhere.so"), vec!["true"], "/nowhere.so cannot be read"),
        (&shim(), vec![], "usage: "),
        (&shim(), vec!["install"], "usage: "),
        (&shim(), vec!["install", "/nowhere"], "/nowhere is not a folder"),
    ];
    for (library, args, words) in cases {
        let output = entrypoint().env("KA_LIBRARY", library).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(stderr(&output).contains(words), "{output:?}");
    }
    // If the policy is wrong, the program still runs, and the shim names the mistake once.
    let output = succeed(entrypoint().env("KA_POLICY", "0,0,0").args(["/usr/bin/python3", "-c", ASK]));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1 60 10 6");
    assert_eq!(stderr(&output).lines().filter(|line| line.contains("KA_POLICY")).count(), 1, "{output:?}");
}

#[test]
fn files_that_the_dockerfile_copies_exist() {
    let text = fs::read_to_string(deploy("docker/Dockerfile")).unwrap();
    let copied: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("COPY ")).collect();
    assert_eq!(copied.len(), 8, "{copied:?}");
    let build = text.lines().find(|line| line.starts_with("RUN cargo build ")).unwrap();
    for line in copied {
        let (source, _) = line.rsplit_once(' ').unwrap();
        match source.strip_prefix("--from=build /ka/target/release/") {
            Some(built) => {
                let package = match built {
                    "libka_preload.so" => "ka-preload",
                    "ka" => "ka-cli",
                    program => program,
                };
                assert!(build.split(' ').any(|word| word == package), "{line}: not built by {build}");
            }
            None => assert!(root().join(source).exists(), "{line}"),
        }
    }
    let (path, name) = ("/usr/local/share/ka/", "seccomp.json");
    assert!(text.contains(&format!("COPY deploy/kubernetes/{name} {path}\n")));
    let manifest = fs::read_to_string(deploy("kubernetes/daemonset.yaml")).unwrap();
    assert!(manifest.contains(&format!("{path}{name}")));
    // The entry point looks for the shim in this folder.
    assert!(text.contains(" /usr/local/lib/ka/\n"));
    let script = fs::read_to_string(deploy("docker/ka-entrypoint")).unwrap();
    assert!(script.contains(":-/usr/local/lib/ka/libka_preload.so}"));
    assert_eq!(fs::metadata(deploy("docker/ka-entrypoint")).unwrap().permissions().mode() & 0o111, 0o111);
}

/// Copies the programs to the places that they have in the image, below another folder.
#[test]
fn ka_in_the_image_finds_the_programs_that_it_starts() {
    let image = scratch("image");
    let text = fs::read_to_string(deploy("docker/Dockerfile")).unwrap();
    for line in text.lines().filter_map(|line| line.strip_prefix("COPY --from=build /ka/target/release/")) {
        let (name, folder) = line.split_once(' ').unwrap();
        let folder = image.join(folder.strip_prefix('/').unwrap());
        fs::create_dir_all(&folder).unwrap();
        copy_program(release().join(name), folder.join(name));
    }
    let ka = image.join("usr/local/bin/ka");
    let mut script = Command::new("script");
    let top = format!("TERM=xterm '{}' top 999999999", ka.display());
    script.args(["-qec", &top, "/dev/null"]).stdin(Stdio::null());
    let output = String::from_utf8(script.output().unwrap().stdout).unwrap();
    // ka-top has tried to list the sockets of this process.
    assert!(output.starts_with("ka: top: process 999999999: "), "{output}");
    let mut watch = Command::new(&ka);
    let mut watch = watch.args(["watch", "--metrics", "0"]).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watch.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut other = lines.take_while(|line| !line.contains("the metrics are at http://127.0.0.1:"));
    // ka prints the address after it has started ka-metrics.
    let failure = other.find(|line| line.contains("ka-metrics"));
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(failure, None);
}

/// Installs kubernetes-validate of PyPI into its own folder. Returns the command, or why it cannot be installed.
fn kubernetes_validate() -> Result<Command, String> {
    let folder = target().join("kubernetes-validate-1.37.0");
    let program = folder.join("bin/kubernetes-validate");
    if !program.exists() {
        succeed(
            Command::new("/usr/bin/python3")
                .args(["-m", "venv", "--system-site-packages", "--without-pip"])
                .arg(&folder),
        );
        let output = Command::new(folder.join("bin/python"))
            .args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--retries", "1"])
            .args(["--timeout", "20", "kubernetes-validate==1.37.0"])
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .output()
            .unwrap();
        if !output.status.success() {
            let why = stderr(&output);
            let why = why.lines().find(|line| line.starts_with("ERROR")).unwrap_or("pip failed").to_owned();
            return Err(why);
        }
    }
    Ok(Command::new(program))
}

#[test]
fn kubernetes_accepts_the_manifests() {
    let mut manifests: Vec<_> =
        fs::read_dir(deploy("kubernetes")).unwrap().map(|entry| entry.unwrap().path()).collect();
    manifests.retain(|path| path.extension().is_some_and(|name| name == "yaml"));
    manifests.sort();
    assert!(manifests.len() >= 4, "{manifests:?}");
    let validate = || kubernetes_validate();
    let mut command = match validate() {
        Ok(command) => command,
        Err(why) => return skip(&format!("the manifests are not validated: no kubernetes-validate: {why}")),
    };
    succeed(command.arg("--strict").args(&manifests));
    // In strict mode an unknown word is an error.
    let broken = scratch("broken").with_extension("yaml");
    let text = fs::read_to_string(deploy("kubernetes/deployment.yaml")).unwrap();
    assert!(text.contains("emptyDir"));
    fs::write(&broken, text.replace("emptyDir", "emptydir")).unwrap();
    let output = validate().unwrap().arg("--strict").arg(&broken).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// Runs the init container's command and the container's environment of the manifest without Kubernetes.
#[test]
fn the_shim_of_the_init_container_is_loaded_by_the_program() {
    let text = fs::read_to_string(deploy("kubernetes/deployment.yaml")).unwrap();
    assert!(text.contains("args: [install, /ka]"));
    let value = |name: &str| {
        let (_, rest) = text.split_once(&format!("{{name: {name}, value: ")).unwrap();
        rest.split('}').next().unwrap().trim_matches('"').to_owned()
    };
    let volume = scratch("volume");
    fs::create_dir(&volume).unwrap();
    for _ in 0..2 {
        succeed(entrypoint().arg("install").arg(&volume));
    }
    let files: Vec<_> = fs::read_dir(&volume).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["libka_preload.so"]);
    let mut python = Command::new("/usr/bin/python3");
    python.env("LD_PRELOAD", value("LD_PRELOAD").replace("/ka", volume.to_str().unwrap()));
    assert_eq!(stdout(python.env("KA_POLICY", value("KA_POLICY")).args(["-c", ASK])).trim(), "1 280 30 5");
}

/// Returns a list of a container in a manifest, such as `args: [a, "b,c"]`.
fn list(manifest: &str, name: &str) -> Vec<String> {
    let (_, rest) = manifest.split_once(&format!("{name}: [")).unwrap();
    let mut rest = rest.split_once('\n').unwrap().0;
    let mut items = vec![];
    loop {
        rest = rest.trim_start();
        let (item, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap(),
            None => rest.split_at(rest.find([',', ']']).unwrap()),
        };
        items.push(item.to_owned());
        rest = match behind.strip_prefix(',') {
            Some(more) => more,
            None => return items,
        };
    }
}

/// A registry cannot replace an image that is named by digest. The placeholder is obvious, and Kubernetes rejects it.
#[test]
fn images_are_named_by_digest() {
    for name in ["deployment", "daemonset", "daemonset-attach"] {
        let manifest = fs::read_to_string(deploy(&format!("kubernetes/{name}.yaml"))).unwrap();
        let mut images =
            manifest.lines().filter_map(|line| line.trim().strip_prefix("image: registry.example/ka"));
        assert!(images.all(|rest| rest == "@sha256:DIGEST"), "{name}");
        assert!(manifest.contains("DIGEST") && manifest.contains("docker push"), "{name}");
    }
    let dockerfile = fs::read_to_string(deploy("docker/Dockerfile")).unwrap();
    for line in dockerfile.lines().filter(|line| line.starts_with("FROM ")) {
        assert!(line.starts_with("FROM $"), "{line}: no --build-arg can name its digest");
    }
}

/// Returns the DaemonSet's seccomp profile, and the system calls that it allows.
fn profile() -> (Value, Vec<String>) {
    let text = fs::read_to_string(deploy("kubernetes/seccomp.json")).unwrap();
    let profile: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let [allowed] = &profile["syscalls"].as_array().unwrap()[..] else { panic!("{profile}") };
    assert_eq!(allowed["action"], "SCMP_ACT_ALLOW");
    let names = allowed["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
    let names: Vec<_> = names.collect();
    for harmful in [
        "mount",
        "umount2",
        "unshare",
        "ptrace",
        "process_vm_writev",
        "open_by_handle_at",
        "init_module",
        "finit_module",
        "kexec_load",
        "keyctl",
        "reboot",
        "setuid",
        "chroot",
        "pivot_root",
        "unlinkat",
    ] {
        assert!(!names.iter().any(|name| name == harmful), "{harmful}");
    }
    let mut sorted = names.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(names, sorted);
    (profile, names)
}

/// Returns the command of a DaemonSet's liveness probe, for the shell.
fn probe(manifest: &str) -> String {
    let (_, rest) = manifest.split_once("livenessProbe:").unwrap();
    let words = list(rest, "command");
    words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect::<Vec<_>>().join(" ")
}

/// Returns a shell command that runs a DaemonSet's container with only the capabilities of the manifest. `allow` is the
/// command that restricts its system calls.
fn container(manifest: &str, allow: &str) -> String {
    assert_eq!((list(manifest, "drop"), list(manifest, "command")), (vec!["ALL".into()], vec!["ka".into()]));
    let bounds = list(manifest, "add").join(",+").to_lowercase();
    let args = list(manifest, "args").join(" ");
    let ka = release().join("ka");
    format!("setpriv --no-new-privs --bounding-set=-all,+{bounds} {allow} {} {args}", ka.display())
}

/// Runs `ka attach` with the arguments and capabilities of the DaemonSet on a process of another user.
#[test]
fn the_attaching_daemonset_container_has_the_rights_that_it_needs() {
    if !is_root() {
        skip("only root may choose its capabilities");
        return;
    }
    let manifest = fs::read_to_string(deploy("kubernetes/daemonset-attach.yaml")).unwrap();
    let program = "import socket as s, sys, time
l = s.create_server(('127.0.0.1', 0)); c = s.create_connection(l.getsockname())
for _ in range(200):
    five = [(a.getsockopt(s.SOL_SOCKET, s.SO_KEEPALIVE), *(a.getsockopt(6, o) for o in (4, 5, 6))) for a in (l, c)]
    if five[0][0] and five[1][0]: break
    time.sleep(0.1)
print(*five)";
    let said = stdout(
        Command::new("unshare")
            .args(["--net", "--pid", "--fork", "--mount-proc", "sh", "-c"])
            .arg(format!(
                "ip link set lo up
                 {} >/dev/null 2>&1 & ka=$!
                 {probe} || exit 9
                 setpriv --reuid 65534 --regid 65534 --clear-groups /usr/bin/python3 -c \"$program\"
                 kill $ka; wait $ka; timeout 3 {probe}; echo \"without it $?\"",
                container(&manifest, ""),
                probe = probe(&manifest),
            ))
            .env("program", program),
    );
    assert_eq!(said, "(1, 280, 30, 5) (1, 280, 30, 5)\nwithout it 124\n");
}

/// The tree of cgroups of the test's node is a part of this machine's tree. The pods have their own networks. The
/// DaemonSet's container has the tree mounted as in the manifest. It has its own PID namespace, in which it is PID 1.
#[test]
fn the_daemonset_gives_the_node_s_pods_the_policy_until_it_is_deleted() {
    if !is_root() {
        skip("only root attaches programs to cgroups");
        return;
    }
    let manifest = fs::read_to_string(deploy("kubernetes/daemonset.yaml")).unwrap();
    assert!(manifest.contains("hostPath: {path: /sys/fs/cgroup,") && manifest.contains("hostPID: false\n"));
    assert!(manifest.contains("mountPath: /sys/fs/cgroup, readOnly: true}"));
    let opted = manifest
        .replace("hostPID: false", "hostPID: true")
        .replace("add: [BPF, NET_ADMIN]", "add: [BPF, NET_ADMIN, PERFMON, SYS_ADMIN, SYS_PTRACE]");
    assert!(opted.contains("hostPID: true") && opted.contains("SYS_PTRACE]"));
    let (_, names) = profile();
    let allow = allowing(names.iter().map(String::as_str)).display().to_string();
    // The program of a pod opens one more socket for each line that it reads, and prints the settings of all.
    let pod = "import socket as s, sys
held = []
for line in sys.stdin:
    l = s.create_server(('127.0.0.1', 0)); held.append(l)
    print(*[(a.getsockopt(s.SOL_SOCKET, s.SO_KEEPALIVE), *(a.getsockopt(6, o) for o in (4, 5, 6))) for a in held], flush=True)";
    let script = r#"
        ip link set lo up
        mount -t tmpfs none /run && mkdir /run/tree && mount -t cgroup2 none /run/tree || exit 77
        node=/run/tree/ka-test-node-$$
        mkdir -p $node/kubepods.slice/pod/container $node/system.slice
        end() {
            exec 3>&-
            kill $first $second 2>/dev/null
            wait
            rmdir $node/kubepods.slice/pod/container $node/kubepods.slice/pod $node/kubepods.slice $node/system.slice $node
        }
        trap end EXIT
        mount --bind $node /sys/fs/cgroup
        mkfifo /run/asked /run/told
        sh -c 'echo $$ >'$node'/kubepods.slice/pod/container/cgroup.procs
            exec unshare --net sh -c "ip link set lo up; exec python3 -c \"\$pod\""' </run/asked >/run/told &
        exec 3>/run/asked 4</run/told
        # The probe is a process of a pod too.
        tell() {
            echo >&3; read -r line <&4; echo "$1: $line"
            (sh -c 'echo $PPID' >$node/kubepods.slice/pod/container/cgroup.procs; eval "exec $allow $probe"); echo "probe $?"
        }
        # Starts the container as the runtime does. When this returns, the policy is in force.
        start() {
            mkfifo /run/said$1
            unshare $2 --net --mount sh -c "umount -l /run/tree; mount -o remount,bind,ro /sys/fs/cgroup; exec $3" \
                >/run/said$1 &
            read -r line </run/said$1; echo "container: $line"
        }
        tell before
        start 1 "--pid --fork --mount-proc --kill-child" "$container" 2>/run/err; first=$!
        cat /run/err
        tell with
        start 2 "" "$opted"; second=$!
        kill $(pgrep -P $first); wait $first
        tell second
        kill $second; wait $second; echo "status $?"
        tell after
    "#;
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", script])
        .env("pod", pod)
        .env("container", container(&manifest, &allow))
        .env("opted", container(&opted, &allow))
        .env("probe", probe(&manifest))
        .env("allow", &allow)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    if output.status.code() == Some(77)
        || ["bpf(2)", "this kernel ("].iter().any(|why| stderr(&output).contains(why))
    {
        skip(&format!("the DaemonSet's container was not tried: {}", stderr(&output)));
        return;
    }
    let with = "(1, 280, 30, 5)";
    let without = "(0, 7200, 75, 9)";
    let policy = "idle=280,intvl=30,cnt=5, mode default";
    let expected = format!(
        "before: {without}\n\
         probe 1\n\
         container: /kubepods.slice: {policy}; 0 sockets set, 0 unchanged, 0 failed; some were not examined\n\
         ka: cgroup attach: the open sockets were not set: needs CAP_PERFMON (run ka as root); \
         use ka attach PID\n\
         with: {without} {with}\n\
         probe 0\n\
         container: /kubepods.slice: {policy}; 1 socket set, 1 unchanged, 0 failed\n\
         second: {with} {with} {with}\n\
         probe 0\n\
         status 0\n\
         after: {with} {with} {with} {without}\n\
         probe 1\n"
    );
    assert_eq!(said, expected, "{}", stderr(&output));
}

/// Starts the DaemonSet's container with an engine: runc, which containerd and CRI-O use. runc makes its own system
/// calls under the profile before it starts ka.
#[test]
fn runc_starts_the_daemonset_s_container_under_its_profile() {
    if !is_root() {
        skip("only root starts containers");
        return;
    }
    let manifest = fs::read_to_string(deploy("kubernetes/daemonset.yaml")).unwrap();
    let capabilities: Vec<_> = list(&manifest, "add").iter().map(|name| format!("CAP_{name}")).collect();
    let mut args = vec![release().join("ka").display().to_string()];
    args.extend(list(&manifest, "args"));
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({"type": kind}));
    let config = |args: &[String]| {
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": ["PATH=/usr/bin:/bin"], "noNewPrivileges": true,
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": "/run/root", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
                {"destination": "/sys/fs/cgroup", "type": "bind", "source": "/run/node", "options": ["rbind", "ro"]},
            ],
            "linux": {"namespaces": namespaces, "seccomp": profile().0},
        })
        .to_string()
    };
    let script = r#"
        ip link set lo up
        command -v runc >/dev/null || { echo "runc is not installed" >&2; exit 77; }
        mount -t tmpfs none /run && mkdir /run/tree /run/root /run/node /run/any /run/ka /run/runc &&
            mount -t cgroup2 none /run/tree && mount --bind / /run/root || exit 77
        node=/run/tree/ka-test-runc-$$
        mkdir -p $node/kubepods.slice
        trap 'rmdir $node/kubepods.slice $node' EXIT
        mount --bind $node /run/node
        printf '%s' "$any" >/run/any/config.json; printf '%s' "$ka" >/run/ka/config.json
        runc --root /run/runc run -b /run/any any || exit 77
        mkfifo /run/said
        runc --root /run/runc run -b /run/ka ka >/run/said & runc=$!
        read -r line </run/said; echo "$line"
        sh -c "echo \$\$ >$node/kubepods.slice/cgroup.procs; exec $probe"; echo "probe $?"
        runc --root /run/runc kill ka TERM; wait $runc; echo "status $?"
        sh -c "echo \$\$ >$node/kubepods.slice/cgroup.procs; exec $probe"; echo "probe $?"
    "#;
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script])
        .env("any", config(&["/bin/true".to_owned()]).replace("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"))
        .env("ka", config(&args))
        .env("probe", probe(&manifest))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    if output.status.code() == Some(77) || stderr(&output).contains("this kernel (") {
        skip(&format!("runc does not start containers here: {}", stderr(&output)));
        return;
    }
    let expected = "/kubepods.slice: idle=280,intvl=30,cnt=5, mode default; 0 sockets set, 0 unchanged, 0 failed; \
        some were not examined\nprobe 0\nstatus 0\nprobe 1\n";
    assert_eq!(said, expected, "{}", stderr(&output));
}
