package main

import (
	"context"
	"errors"
	"fmt"

	"matriarch/internal/admin"
	"matriarch/internal/identity"
)

// Keys implements admin.Source.
func (s source) Keys(ctx context.Context, r admin.KeysRequest) (a admin.KeysAnswer, err error) {
	n := s.n
	switch r.Do {
	case admin.KeysShow:
	case admin.KeysRenew:
		err = n.certs.Renew(ctx)
	case admin.KeysTrust:
		err = n.certs.Trust(ctx, r.Cert, r.Key)
	case admin.KeysSign:
		err = n.certs.Sign(ctx, r.CA)
	case admin.KeysDrop:
		err = n.certs.Drop(ctx, r.CA)
	case admin.KeysForget:
		err = n.certs.Forget(ctx, r.CA)
	case admin.KeysHand:
		if r.CA == "" {
			a.Secrets = map[string]string{}
			a.Secrets[identity.Superuser], a.Secrets[identity.Replication], err = n.stagedPasswords()
		} else {
			a.Cert, a.Key, err = n.certs.Hand(r.CA)
		}
	case admin.KeysStage:
		err = n.stagePasswords(r.Secrets)
	case admin.KeysSet:
		err = n.setPasswords(ctx)
	case admin.KeysCommit:
		err = n.commitPasswords()
	default:
		err = fmt.Errorf("this version does not know how to %q keys: upgrade it", r.Do)
	}
	if err != nil {
		return admin.KeysAnswer{}, err
	}
	n.log.Info("keys", "asked", r.Do)
	if a.Report, err = n.certs.Show(); err != nil {
		return admin.KeysAnswer{}, err
	}
	staged, err := n.dir.StagedSecret(identity.Superuser)
	a.Staged = staged != ""
	return a, err
}

// stagePasswords is the first step of a change: from now on this node may be met by either.
func (n *node) stagePasswords(secrets map[string]string) error {
	super, repl := secrets[identity.Superuser], secrets[identity.Replication]
	if super == "" || repl == "" || len(secrets) != 2 {
		return errors.New("both passwords are needed, and no other secret")
	}
	if err := n.dir.StageSecrets(secrets); err != nil {
		return err
	}
	n.pg.StagePasswords(super)
	return nil
}

// setPasswords is the second: this primary's roles get them. Standbys learn it by replay.
func (n *node) setPasswords(ctx context.Context) error {
	super, repl, err := n.stagedPasswords()
	if err != nil {
		return err
	}
	return n.pg.SetPasswords(ctx, super, repl)
}

// commitPasswords is the last, once every primary has them. Repeated it does nothing.
func (n *node) commitPasswords() error {
	super, repl, err := n.stagedPasswords()
	if err != nil {
		return err
	}
	if err := n.dir.CommitSecrets(identity.Superuser, identity.Replication); err != nil {
		return err
	}
	n.pg.UsePasswords(super, repl)
	return nil
}

// stagedPasswords falls back on the ones in force, where they were put in force already.
func (n *node) stagedPasswords() (super, repl string, err error) {
	for name, into := range map[string]*string{identity.Superuser: &super, identity.Replication: &repl} {
		if *into, err = n.dir.StagedSecret(name); err == nil && *into == "" {
			*into, err = n.dir.Secret(name)
		}
		if err != nil {
			return "", "", err
		}
	}
	return super, repl, nil
}
