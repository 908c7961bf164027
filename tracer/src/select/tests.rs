//! Tables of selections and processes, and random text.

use proptest::prelude::*;

use super::{names::Names, *};

const ID: &str = "3f4a5b6c7d8e9f00112233445566778899aabbccddeeff00112233445566778a";

fn process(comm: &str, exe: &str, cgroup: &str, user: u32) -> Facts {
    Facts {
        pid: 7,
        comm: comm.to_owned(),
        exe: Some(exe.to_owned()),
        cgroups: cgroups::parse(cgroup),
        user: Some(user),
    }
}

/// A selection from words like `comm=redis*`.
fn selection(words: &str) -> Selection {
    let mut selection = Selection::default();
    for word in words.split_whitespace() {
        let (kind, value) = word.split_once('=').unwrap();
        match kind {
            "pid" => selection.pids.push(value.parse().unwrap()),
            "comm" => selection.add_comm(value).unwrap(),
            "not" => selection.exclude_comm(value).unwrap(),
            "exe" => selection.add_exe(value).unwrap(),
            "cgroup" => selection.add_cgroup(value).unwrap(),
            "container" => selection.add_container(value).unwrap(),
            "user" => selection.add_user(value.parse().unwrap()),
            _ => panic!("{kind}"),
        }
    }
    selection
}

#[track_caller]
fn check(process: &Facts, names: &Names, table: &[(&str, bool)]) {
    for (words, fits) in table {
        assert_eq!(selection(words).fits(process, names), *fits, "{words} on {process:?}");
    }
}

#[test]
fn kinds_combine() {
    let redis = process("redis-server", "/usr/bin/redis-server", "0::/system.slice/redis.service\n", 110);
    let table = [
        ("comm=redis*", true),
        ("comm=REDIS*", false),
        ("comm=nginx comm=redis-server", true),
        ("comm=redis", false),
        ("comm=redis* user=110", true),
        ("comm=redis* user=0", false),
        ("user=0 user=110", true),
        ("pid=7", true),
        ("pid=8", false),
        ("pid=8 comm=redis*", false),
        ("comm=redis* not=*server", false),
        ("not=nginx", true),
        ("exe=redis-server", true),
        ("exe=redis-*", true),
        ("exe=/usr/bin/*", true),
        ("exe=/usr/*", false),
        ("exe=/usr/**", true),
        ("exe=**/redis-server", true),
        ("exe=/opt/*", false),
        ("comm=redis-[st]erver", true),
        ("comm=redis-{cli,server}", true),
        ("comm=?edis-server", true),
    ];
    check(&redis, &Names::default(), &table);
    let unknown = Facts { exe: None, user: None, ..redis };
    check(&unknown, &Names::default(), &[("exe=**", false), ("user=110", false), ("comm=redis*", true)]);
}

#[test]
fn names_longer_than_the_kernel_keeps() {
    let cut = process("a-very-long-nam", "/x", "", 0);
    check(&cut, &Names::default(), &[("comm=a-very-long-name-indeed", true), ("comm=a-very-long-naxe", false)]);
}

#[test]
fn cgroups_of_both_versions() {
    let v2 = process("x", "/x", "0::/system.slice/web.service/worker\n", 0);
    let table = [
        ("cgroup=/system.slice/web.service", true),
        ("cgroup=/system.slice/web.service/", true),
        ("cgroup=/system.slice/web", false),
        ("cgroup=/", true),
        ("cgroup=/sys/fs/cgroup/system.slice", true),
        ("cgroup=/sys/fs/cgroup/unified/system.slice", true),
        ("cgroup=/sys/fs/cgroup/memory/system.slice", false),
        ("cgroup=/sys/fs/cgroup", true),
    ];
    check(&v2, &Names::default(), &table);
    let v1 = process("x", "/x", "4:cpu,cpuacct:/web\n3:memory:/a/b\n1:name=systemd:/s\n0::/\n", 0);
    let table = [
        ("cgroup=/a", true),
        ("cgroup=/web", true),
        ("cgroup=/sys/fs/cgroup/memory/a", true),
        ("cgroup=/sys/fs/cgroup/cpu,cpuacct/web", true),
        ("cgroup=/sys/fs/cgroup/cpu/web", true),
        ("cgroup=/sys/fs/cgroup/systemd/s", true),
        ("cgroup=/sys/fs/cgroup/memory/web", false),
        ("cgroup=/sys/fs/cgroup/unified", true),
        ("cgroup=/sys/fs/cgroupx", false),
    ];
    check(&v1, &Names::default(), &table);
}

#[test]
fn containers_by_id_name_and_pod() {
    let pod = "/kubepods.slice/kubepods-pod0f1b2c3d_1111_2222_3333_444455556666.slice";
    let names = Names::of(
        [(ID.to_owned(), "web".to_owned())],
        [("shop/cart-1".to_owned(), "0f1b2c3d-1111-2222-3333-444455556666".to_owned())],
    );
    let docker = process("x", "/x", &format!("0::/system.slice/docker-{ID}.scope/init\n"), 0);
    let table = [
        ("container=web", true),
        ("container=we", false),
        ("container=3f4a5b6c7d8e", true),
        ("container=3f4a5b", true),
        ("container=3f4", false),
        ("container=4f4a5b6c7d8e", false),
        ("container=cart-1", false),
    ];
    check(&docker, &names, &table);
    let in_pod = process("x", "/x", &format!("0::{pod}/cri-containerd-{}.scope\n", "9".repeat(64)), 0);
    let table = [("container=cart-1", true), ("container=shop/cart-1", true), ("container=other/cart-1", false)];
    check(&in_pod, &names, &table);
    let nested = process("x", "/x", &format!("0::/docker/{ID}/docker/{}\n", "8".repeat(64)), 0);
    check(&nested, &names, &[("container=web", true), ("container=888888888888", true)]);
    check(&process("x", "/x", "0::/lxc/db\n", 0), &names, &[("container=db", true), ("container=d", false)]);
}

#[test]
fn what_makes_no_sense_says_what_to_do() {
    let mut selection = Selection::default();
    for (error, hint) in [
        (selection.add_comm("a[").unwrap_err(), "pattern"),
        (selection.add_comm("").unwrap_err(), "empty"),
        (selection.exclude_comm("{a").unwrap_err(), "pattern"),
        (selection.add_exe("bin/x").unwrap_err(), "whole path"),
        (selection.add_cgroup("web.service").unwrap_err(), "/proc/PID/cgroup"),
        (selection.add_cgroup("/a/../b").unwrap_err(), "/proc/PID/cgroup"),
        (selection.add_container("").unwrap_err(), "empty"),
    ] {
        assert!(error.to_string().contains(hint), "{error}");
    }
    assert!(!selection.is_more_than_pids(), "nothing of that was taken");
    assert!(self::selection("not=x").only_excludes() && !self::selection("pid=5 not=x").only_excludes());
}

proptest! {
    /// Whatever patterns and names are: no panic, and excluding wins.
    #[test]
    fn random_text_does_no_harm(pattern in "\\PC{0,20}", comm in "\\PC{0,15}", path in "/?[a-f0-9:./_-]{0,90}") {
        let mut selection = Selection::default();
        let _ = (selection.add_comm(&pattern), selection.add_exe(&pattern), selection.add_cgroup(&path));
        let _ = selection.add_container(&pattern);
        let process = process(&comm, &path, &format!("0::{path}\n"), 0);
        selection.fits(&process, &Names::default());
        selection.exclude_comm("*").unwrap();
        prop_assert!(!selection.fits(&process, &Names::default()));
    }

    /// A name without special characters matches itself alone.
    #[test]
    fn plain_names_match_themselves(name in "[a-zA-Z0-9_.:/-]{1,15}", other in "[a-zA-Z0-9_.:/-]{1,15}") {
        let mut selection = Selection::default();
        selection.add_comm(&name).unwrap();
        prop_assert!(selection.fits(&process(&name, "/x", "", 0), &Names::default()));
        prop_assert_eq!(selection.fits(&process(&other, "/x", "", 0), &Names::default()), name == other);
    }
}
