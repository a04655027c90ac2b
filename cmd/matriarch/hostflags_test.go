package main

import (
	"os"
	"path/filepath"
	"testing"

	"matriarch/internal/config"
)

// A fresh host has no /etc/matriarch.
func TestSaveConfigMakesItsDirectory(t *testing.T) {
	cfg := config.Default()
	cfg.Node.ID, cfg.Node.Name, cfg.Advertise = "c0cb7855-7407-426b-81e9-aef2d03105ab", "coord-1", "10.0.0.11:7400"
	path := filepath.Join(t.TempDir(), "etc", "matriarch", "matriarch.yml")
	if err := saveConfig(cfg, path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
}
