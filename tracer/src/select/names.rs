//! What containers are called: as the state files of their runtimes on this machine tell it, without asking a daemon.
//!
//! docker: `containers/ID/config.v2.json`. podman and CRI-O: `containers.json` of container storage. nerdctl: a file for each name.
//! Kubernetes: the links in `/var/log/containers` (`POD_NAMESPACE_CONTAINER-ID.log`) and the folders in `/var/log/pods`
//! (`NAMESPACE_POD_UID`).

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Largest state file that is read, bytes.
const MAX_FILE: u64 = 16 << 20;
/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1 << 16;

/// Names of containers and of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Id and name.
    containers: Vec<(String, String)>,
    /// `NAMESPACE/NAME` and uid.
    pods: Vec<(String, String)>,
}

impl Names {
    /// These containers (id, name) and pods (`NAMESPACE/NAME`, uid).
    pub fn of(
        containers: impl IntoIterator<Item = (String, String)>,
        pods: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self { containers: containers.into_iter().collect(), pods: pods.into_iter().collect() }
    }

    /// All that is told below `root`: `/`, but for tests.
    pub fn read(root: &Path) -> Self {
        let mut names = Self::default();
        for folder in entries(&root.join("var/lib/docker/containers")) {
            let Some(id) = file_name(&folder) else { continue };
            let config = text(&folder.join("config.v2.json")).unwrap_or_default();
            names.containers.extend(docker(&config).map(|name| (id, name)));
        }
        for storage in ["var/lib/containers/storage", "var/lib/containers/storage/volatile"] {
            for kind in ["overlay-containers", "vfs-containers", "btrfs-containers", "zfs-containers"] {
                for file in ["containers.json", "volatile-containers.json"] {
                    let path = root.join(storage).join(kind).join(file);
                    names.containers.extend(storage_names(&text(&path).unwrap_or_default()));
                }
            }
        }
        for store in entries(&root.join("var/lib/nerdctl")) {
            for namespace in entries(&store.join("names")) {
                for file in entries(&namespace) {
                    let id = text(&file).map(|id| id.trim().to_owned());
                    names.containers.extend(id.zip(file_name(&file)));
                }
            }
        }
        let links = entries(&root.join("var/log/containers"));
        names.containers.extend(links.filter_map(|link| container_of_link(&file_name(&link)?)));
        let folders = entries(&root.join("var/log/pods"));
        names.pods.extend(folders.filter_map(|folder| pod_of_folder(&file_name(&folder)?)));
        names
    }

    /// What the container with this id is called: its first name.
    pub fn of_container(&self, id: &str) -> Option<&str> {
        self.containers.iter().find(|(known, _)| known == id).map(|(_, name)| &**name)
    }

    /// Whether the container with this id has this name.
    pub fn is_called(&self, id: &str, name: &str) -> bool {
        self.containers.iter().any(|(known, called)| known == id && called == name)
    }

    /// Whether a cgroup is of the pod with this name: `NAME`, or `NAMESPACE/NAME`.
    pub fn is_in_pod(&self, cgroup: &str, name: &str) -> bool {
        let is_called = |pod: &str| pod == name || pod.split_once('/').is_some_and(|(_, pod)| pod == name);
        let uids = self.pods.iter().filter(|(pod, _)| is_called(pod)).map(|(_, uid)| uid);
        // systemd's names of slices have underscores for dashes.
        uids.into_iter().any(|uid| {
            let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
            cgroup.split(['/', ':']).any(|part| {
                let part = part.strip_suffix(".slice").unwrap_or(part);
                names
                    .iter()
                    .any(|name| part.strip_suffix(&**name).is_some_and(|rest| rest.is_empty() || rest.ends_with('-')))
            })
        })
    }
}

#[derive(Deserialize)]
struct Docker {
    #[serde(rename = "Name")]
    name: String,
}

/// The name in docker's `config.v2.json`, which begins with a slash there.
fn docker(config: &str) -> Option<String> {
    let Docker { name } = serde_json::from_str(config).ok()?;
    Some(name.trim_start_matches('/').to_owned())
}

#[derive(Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Vec<String>,
}

/// Ids and names in a `containers.json` of container storage.
fn storage_names(text: &str) -> Vec<(String, String)> {
    let stored: Vec<Stored> = serde_json::from_str(text).unwrap_or_default();
    let named =
        stored.into_iter().flat_map(|Stored { id, names }| names.into_iter().map(move |name| (id.clone(), name)));
    named.collect()
}

/// Id and name of the container in `POD_NAMESPACE_CONTAINER-ID.log`.
fn container_of_link(name: &str) -> Option<(String, String)> {
    let (rest, id) = name.strip_suffix(".log")?.rsplit_once('-')?;
    let (_, container) = rest.rsplit_once('_')?;
    super::containers::is_id(id).then(|| (id.to_owned(), container.to_owned()))
}

/// `NAMESPACE/NAME` and uid of the pod in `NAMESPACE_POD_UID`.
fn pod_of_folder(name: &str) -> Option<(String, String)> {
    let (namespace, rest) = name.split_once('_')?;
    let (pod, uid) = rest.rsplit_once('_')?;
    (!pod.is_empty() && !uid.is_empty()).then(|| (format!("{namespace}/{pod}"), uid.to_owned()))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.take(MAX_ENTRIES).map(|entry| entry.path())
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn state_files_of_all_runtimes() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            &format!("var/lib/docker/containers/{}/config.v2.json", id('a')),
            r#"{"State":{"Running":true,"Pid":4711},"ID":"aaaa","Name":"/web","Config":{"Hostname":"x"}}"#,
        );
        write(&format!("var/lib/docker/containers/{}/config.v2.json", id('b')), "{broken");
        write(
            "var/lib/containers/storage/overlay-containers/containers.json",
            &format!(r#"[{{"id":"{}","names":["db","db2"],"image":"x"}},{{"id":"{}"}}]"#, id('c'), id('d')),
        );
        write("var/lib/nerdctl/1935db59/names/default/cache", &format!("{}\n", id('e')));
        write(&format!("var/log/containers/cart-1_shop_main-{}.log", id('f')), "");
        write("var/log/containers/not-a-container.log", "");
        write("var/log/pods/shop_cart-1_0f1b2c3d-1111-2222-3333-444455556666/main/0.log", "");
        let names = Names::read(root.path());
        for (digit, name) in [('a', "web"), ('c', "db"), ('c', "db2"), ('e', "cache"), ('f', "main")] {
            assert!(names.is_called(&id(digit), name), "{digit} {name} in {names:?}");
        }
        assert_eq!([names.of_container(&id('c')), names.of_container(&id('d'))], [Some("db"), None]);
        assert_eq!(names.containers.len(), 5, "{names:?}");
        let uid = "0f1b2c3d-1111-2222-3333-444455556666";
        assert_eq!(names.pods, [("shop/cart-1".to_owned(), uid.to_owned())]);
        for (cgroup, inside) in [
            (format!("/kubepods/burstable/pod{uid}/{}", id('f')), true),
            (format!("/kubepods.slice/kubepods-pod{}.slice/x.scope", uid.replace('-', "_")), true),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-besteffort-pod{}.slice:cri-containerd:{}",
                    uid.replace('-', "_"),
                    id('f')
                ),
                true,
            ),
            (format!("/kubepods/xpod{uid}/y"), false),
            ("/".to_owned(), false),
        ] {
            assert_eq!(names.is_in_pod(&cgroup, "cart-1"), inside, "{cgroup}");
        }
        assert_eq!(Names::read(Path::new("/nowhere")), Names::default());
    }

    proptest! {
        #[test]
        fn random_text_does_no_harm(text in "\\PC{0,80}") {
            let _ = (docker(&text), storage_names(&text), container_of_link(&text), pod_of_folder(&text));
        }
    }
}
