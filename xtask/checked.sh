#!/bin/sh
# The compiler of the workspace's own crates for unit tests (`RUSTC_WORKSPACE_WRAPPER`): as in builds for development, so that
# arithmetic is checked and they are built soon, while what they depend on is that of the release, which is built in any case.
exec "$@" -Cdebug-assertions=on -Coverflow-checks=on -Copt-level=0
