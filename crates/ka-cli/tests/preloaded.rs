//! Tests ka while the shim is preloaded into ka itself, as on a machine that preloads it into every program. The shim
//! has another policy than ka. ka must set its own policy on the sockets of other programs.

mod command;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use command::cgroups::in_own_cgroup_tree;
use command::{FRESH, Holder, as_nobody, bare, holder, ka, outcome, static_holder};
use ka_test::artifact::{release, shim};
use ka_test::child::{stdout, succeed};
use ka_test::log::skip;
use ka_test::namespace::{is_root, with_own_etc};
use ka_test::path::{PublicFolder, copy_program, scratch};

/// Returns ka with the shim preloaded, which has this policy.
fn under(policy: &str) -> Command {
    let mut ka = ka();
    ka.env("LD_PRELOAD", shim()).env("KA_POLICY", policy);
    ka
}

#[test]
fn ka_attach_sets_its_own_policy() {
    let mut holder = Holder::start(&mut bare(holder()));
    let (status, out, err) =
        outcome(under("60,10,6").args(["attach", "-p", "30,5,3", &holder.pid().to_string()]));
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (0, "3 sockets set to 30,5,3 (mode force), 0 unchanged, 0 failed\n", "")
    );
    holder.assert_all(30, 5, 3);
    let (_, out, _) = outcome(under("60,10,6").args(["attach", "-p", "off", &holder.pid().to_string()]));
    assert_eq!(out, "3 sockets set to off (mode force), 0 unchanged, 0 failed\n");
    assert!(holder.look().iter().all(|options| !options.on));
}

/// The program is static, so it gets a policy only from the supervisor.
#[test]
fn ka_run_via_seccomp_sets_its_own_policy() {
    let mut run = under("60,10,6");
    let mut holder =
        Holder::start(run.args(["run", "--via", "seccomp", "-p", "30,5,3"]).arg(static_holder()));
    holder.assert_all(30, 5, 3);
    holder.open();
    holder.assert_all(30, 5, 3);
}

#[test]
fn ka_run_in_ka_run_sets_the_policy_of_the_inner_one() {
    let own = release().join("ka");
    let inside = |outer: &[&str]| {
        let inner = [own.as_os_str(), "run".as_ref(), "-p".as_ref(), "30,5,3".as_ref()];
        outcome(ka().args(outer).arg("--").args(inner).args(["--", "python3", "-c", FRESH]))
    };
    // ka also prints no message about another policy in force.
    let given = (0, "1 30 5 3 0\n".to_owned(), String::new());
    assert_eq!(inside(&["run", "-p", "60,10,6"]), given);
    assert_eq!(outcome(under("60,10,6").args(["run", "-p", "30,5,3", "python3", "-c", FRESH])), given);
    // If another policy is in force, ka reports it, and does not refuse to run.
    let mut outer = under("60,10,6");
    outer.args(["run", "--via", "seccomp", "-p", "90,20,4"]).arg(&own);
    let (status, _, err) = outcome(outer.args(["run", "-p", "30,5,3", "true"]));
    assert_eq!(
        (status, err.as_str()),
        (0, "ka: run: the policy of an outer ka run --via seccomp applies: 90,20,4\n")
    );
}

#[test]
fn ka_run_via_cgroup_sets_its_own_policy() {
    if !in_own_cgroup_tree("ka_run_via_cgroup_sets_its_own_policy") {
        return;
    }
    let said = scratch("said");
    let file = fs::File::create(&said).unwrap();
    let mut run = under("60,10,6");
    run.args(["run", "--via", "cgroup", "-p", "30,5,3"]).arg(static_holder()).stderr(file);
    Holder::start(&mut run).assert_all(30, 5, 3);
    assert_eq!(fs::read_to_string(said).unwrap(), "", "ka reports that the policy of a cgroup is in force");
}

/// Only the programs for which the shim is active report wrong variables.
#[test]
fn the_shim_is_silent_in_ka() {
    let (_, out, err) = outcome(under("nonsense").arg("--version"));
    assert!(out.starts_with("ka ") && err.is_empty(), "{err}");
    // The shim reports the mistake in other programs.
    let elsewhere = bare("true").env("LD_PRELOAD", shim()).env("KA_POLICY", "nonsense").output().unwrap();
    assert!(String::from_utf8(elsewhere.stderr).unwrap().starts_with("ka: KA_POLICY=\"nonsense\": "));
}

/// Tests a machine whose loader reads /etc/ld.so.preload, while ka has capabilities, so that the environment is
/// ignored.
#[test]
fn ka_with_capabilities_sets_its_own_policy_under_ld_so_preload() {
    if !is_root() {
        skip("only root may have an /etc of its own, and give programs capabilities");
        return;
    }
    let folder = PublicFolder::new("capable");
    let copy = |from: &Path, name: &str| {
        copy_program(from, folder.join(name));
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        folder.join(name)
    };
    let capable = copy(&release().join("ka"), "ka");
    let shim = copy(&shim(), "libka_preload.so");
    succeed(Command::new("setcap").arg("cap_sys_ptrace+ep").arg(&capable));
    let mut holder = Holder::start(&mut as_nobody(&bare(copy(holder(), "holder"))));
    let output = with_own_etc(&format!(
        "echo KA_POLICY=60,10,6 >/etc/ka.conf; echo {} >/etc/ld.so.preload
         setpriv --reuid 65534 --regid 65534 --clear-groups {} attach -p 30,5,3 {}",
        shim.display(),
        capable.display(),
        holder.pid()
    ));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "3 sockets set to 30,5,3 (mode force), 0 unchanged, 0 failed\n"
    );
    holder.assert_all(30, 5, 3);
}

/// The linker must keep this symbol, although nothing calls it and the file is stripped.
#[test]
fn ka_exports_the_symbol_by_which_the_shim_recognizes_it() {
    let ka = release().join("ka");
    let table = stdout(Command::new("nm").args(["-D", "--defined-only"]).arg(ka));
    assert!(table.lines().any(|line| line.ends_with(" T ka_preload_off")), "{table}");
    for library in ["libka.so", "libka_preload.so"] {
        let library = release().join(library);
        let table = stdout(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
        assert!(!table.contains("ka_preload_off"), "{table}");
    }
}
