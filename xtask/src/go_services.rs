//! Services in Go that the tests trace, as their makers release them: `test` builds two, `test --go-services` all.
//!
//! Each is built from its module by the newest of our toolchains, in cargo's target directory. Their dependencies are
//! those that they name themselves.

use std::{ffi::OsString, fs};

use anyhow::Result;

use crate::{
    command::{self, NETWORK_PAUSE},
    go::{TOOLCHAINS, go, toolchain},
    integration, setup,
    workspace::Workspace,
};

/// A program of a module.
pub(crate) struct Service {
    name: &'static str,
    module: &'static str,
    version: &'static str,
    package: &'static str,
}

/// Those that take a minute or two to build.
pub(crate) const SHORT: &[Service] = &[
    Service {
        name: "nats-server",
        module: "github.com/nats-io/nats-server/v2",
        version: "v2.15.3",
        package: "github.com/nats-io/nats-server/v2",
    },
    Service {
        name: "caddy",
        module: "github.com/caddyserver/caddy/v2",
        version: "v2.11.9",
        package: "github.com/caddyserver/caddy/v2/cmd/caddy",
    },
];

const LONG: &[Service] = &[
    Service {
        name: "etcd",
        module: "go.etcd.io/etcd/server/v3",
        version: "v3.7.3",
        package: "go.etcd.io/etcd/server/v3",
    },
    Service {
        name: "prometheus",
        module: "github.com/prometheus/prometheus",
        version: "v0.316.0",
        package: "github.com/prometheus/prometheus/cmd/prometheus",
    },
];

/// Their tests, in the integration tests.
const TESTS: &str = "services::go";

/// Whether tests of these names are among those that a user wants.
pub(crate) fn wanted(filters: &[OsString]) -> bool {
    let names = filters.iter().filter_map(|filter| filter.to_str()).filter(|filter| !filter.starts_with('-'));
    let mut names = names.peekable();
    names.peek().is_none() || names.any(|name| name.starts_with(TESTS) || TESTS.contains(name))
}

/// Builds services that have not been built before; cheap for the others.
pub(crate) fn build(workspace: &Workspace, services: &[Service]) -> Result<()> {
    let version = TOOLCHAINS[TOOLCHAINS.len() - 1];
    let root = toolchain(workspace, version)?;
    let folder = workspace.target.join("go/services");
    for service in services {
        // A module that requires only this one: a program is not installed by its name when its module replaces others.
        let module = folder.join(format!("{}-{}", service.name, service.version));
        fs::create_dir_all(&module)?;
        if !module.join("go.mod").exists() {
            let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
            let requirement = format!("require {} {}", service.module, service.version);
            fs::write(module.join("go.mod"), format!("module services\n\ngo {minor}\n\n{requirement}\n"))?;
        }
        command::with_retries("build of a Go service", NETWORK_PAUSE, |_| {
            let mut build = go(&root);
            build.env("GOMODCACHE", workspace.target.join("go/modules")).env("GOFLAGS", "-mod=mod -modcacherw");
            build.args(["build", "-o"]).arg(folder.join(service.name)).arg(service.package);
            command::run(build.current_dir(&module))
        })?;
    }
    Ok(())
}

/// `test --go-services`.
pub(crate) fn test(workspace: &Workspace, filters: &[OsString]) -> Result<()> {
    setup::for_tests()?;
    build(workspace, SHORT)?;
    build(workspace, LONG)?;
    let default = [OsString::from(TESTS)];
    let filters = if filters.is_empty() { &default[..] } else { filters };
    command::run(integration::tests(workspace).args(["--", "--include-ignored"]).args(filters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_built_for_their_tests_only() {
        for (filters, expected) in [
            (&[][..], true),
            (&["--nocapture"], true),
            (&["services"], true),
            (&["services::go::nats_by_samples", "--nocapture"], true),
            (&["goroutines::"], false),
            (&["services::nginx"], false),
        ] {
            let filters: Vec<OsString> = filters.iter().map(OsString::from).collect();
            assert_eq!(wanted(&filters), expected, "{filters:?}");
        }
    }
}
