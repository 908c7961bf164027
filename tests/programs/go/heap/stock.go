// As most programs are: without the runtime's profile.
//go:build !profiled

package main

import "errors"

func profile(string) error { return errors.New("built without the tag profiled") }
