//! Containers by the paths of their cgroups: every runtime puts the id into the name of the cgroup.
//!
//! docker: `/docker/ID`, `/system.slice/docker-ID.scope`. containerd: `/NAMESPACE/ID`, `cri-containerd-ID.scope`, `…:cri-containerd:ID`
//! (systemd's driver without systemd). CRI-O: `crio-ID.scope`, `/crio-ID`. podman: `libpod-ID.scope`, `/libpod_parent/libpod-ID`. Kubernetes: any of
//! these below `kubepods`, with the pod's uid in the cgroup above. LXC: `/lxc/NAME`, `/lxc.payload.NAME`.

/// A container, as far as the path of a cgroup tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container<'a> {
    /// Its runtime; empty where that is not told.
    pub runtime: &'a str,
    /// Its id: 64 hexadecimal digits, of LXC a name.
    pub id: &'a str,
}

/// Digits of an id.
const ID: usize = 64;
/// Fewest digits that an id is known by.
const SHORTEST: usize = 6;
/// Digits of an id that people are shown.
const SHORT: usize = 12;

/// What stands before an id, and the runtime that puts it there.
const PREFIXES: [(&str, &str); 6] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("containerd-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-", "podman"),
    ("nerdctl-", "containerd"),
];
/// Names of cgroups of containers of LXC.
const LXC: [&str; 2] = ["lxc.payload.", "lxc.payload/"];

impl<'a> Container<'a> {
    /// The innermost one that a process is in whose cgroup is `path`.
    pub fn of(path: &'a str) -> Option<Self> {
        Self::all(path).next()
    }

    /// All that it is in, the innermost first.
    pub fn all(path: &'a str) -> impl Iterator<Item = Self> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        (0..parts.len()).rev().filter_map(move |index| named(&parts[..=index]))
    }

    /// Its id, as short as people write it.
    pub fn short(&self) -> &'a str {
        if is_id(self.id) { &self.id[..SHORT] } else { self.id }
    }
}

/// The container that the last of these parts of a path names.
fn named<'a>(parts: &[&'a str]) -> Option<Container<'a>> {
    let (part, above) = parts.split_last()?;
    let above = above.last().copied().unwrap_or_default();
    if let Some(name) = LXC.iter().find_map(|prefix| part.strip_prefix(prefix)) {
        return Some(Container { runtime: "lxc", id: name });
    }
    if above == "lxc" {
        return Some(Container { runtime: "lxc", id: part });
    }
    let part = part.strip_suffix(".scope").unwrap_or(part);
    // `SLICE:cri-containerd:ID`
    let mut fields = part.rsplitn(3, ':');
    if let (Some(id), Some(runtime), Some(_)) = (fields.next(), fields.next(), fields.next())
        && is_id(id)
    {
        let known = PREFIXES.iter().find(|(prefix, _)| prefix.trim_end_matches('-') == runtime);
        return Some(Container { runtime: known.map_or(runtime, |(_, name)| name), id });
    }
    let prefixed = PREFIXES.iter().find_map(|(prefix, runtime)| Some((part.strip_prefix(prefix)?, *runtime)));
    let (id, runtime) = prefixed.unwrap_or((part, if above == "docker" { "docker" } else { "" }));
    is_id(id).then_some(Container { runtime, id })
}

/// Whether `text` is the begin of the id of a container, long enough to be meant as one.
pub(super) fn is_begin_of(text: &str, id: &str) -> bool {
    text.len() >= SHORTEST && is_id(id) && id.starts_with(text)
}

/// Whether `text` is a whole id.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "3f4a5b6c7d8e9f00112233445566778899aabbccddeeff00112233445566778a";
    const POD: &str = "pod0f1b2c3d_1111_2222_3333_444455556666";

    #[test]
    fn paths_of_all_runtimes() {
        for (path, runtime) in [
            (format!("/docker/{A}"), "docker"),
            (format!("/system.slice/docker-{A}.scope"), "docker"),
            (format!("/system.slice/docker-{A}.scope/init"), "docker"),
            (format!("/default/{A}"), ""),
            (format!("/system.slice/nerdctl-{A}.scope"), "containerd"),
            (format!("/kubepods/burstable/pod0f1b2c3d-1111-2222-3333-444455556666/{A}"), ""),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD}.slice/cri-containerd-{A}.scope"
                ),
                "containerd",
            ),
            (format!("/kubepods.slice/kubepods-{POD}.slice/crio-{A}.scope"), "cri-o"),
            (format!("/kubepods.slice/kubepods-{POD}.slice/docker-{A}.scope"), "docker"),
            (
                format!("/system.slice/containerd.service/kubepods-burstable-{POD}.slice:cri-containerd:{A}"),
                "containerd",
            ),
            (format!("/machine.slice/libpod-{A}.scope/container"), "podman"),
            (format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"), "podman"),
            (format!("/libpod_parent/libpod-{A}"), "podman"),
            (format!("/docker/{}/docker/{A}", "0".repeat(64)), "docker"),
        ] {
            assert_eq!(Container::of(&path), Some(Container { runtime, id: A }), "{path}");
        }
        for (path, id) in [("/lxc/web", "web"), ("/lxc.payload.db/system.slice/cron.service", "db")] {
            assert_eq!(Container::of(path), Some(Container { runtime: "lxc", id }), "{path}");
        }
    }

    #[test]
    fn other_cgroups_are_no_containers() {
        for path in [
            "/",
            "",
            "/system.slice/docker.service",
            "/user.slice/user-1000.slice/session-3.scope",
            "/docker/short",
            "/process_api/fb7f5329a0de30ad9cdcb0e100f1160e",
            &format!("/x/{}", A.to_uppercase()),
            "/docker-.scope",
            "::::",
        ] {
            assert_eq!(Container::of(path), None, "{path}");
        }
        assert_eq!(Container::of(&format!("/docker/{A}")).unwrap().short(), "3f4a5b6c7d8e");
    }
}
