package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/identity"
	"matriarch/transport"
)

func (p *program) tokenVerb() *cli.Command {
	return &cli.Command{
		Name: "token", Usage: "list, make and revoke join tokens", Category: "Change",
		Description: "A token lets hosts join until it expires, is used up or is revoked.\nExample:\n   matriarch token create --ttl 2h --uses 3",
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "show the tokens",
				Description: "Shows what is left of every token; secrets are not kept anywhere.\nExample:\n   matriarch token list",
				Action:      p.tokenList,
			},
			{
				Name: "create", Usage: "make a token and print the whole join line",
				Description: "Prints one line for the other hosts. It is shown once: the cluster keeps only a hash.\nExample:\n   matriarch token create --ttl 24h --uses 20",
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "ttl", Usage: "how long it is good", Value: 24 * time.Hour},
					&cli.IntFlag{Name: "uses", Usage: "how many hosts may join by it", Value: 20},
				},
				Action: p.tokenCreate,
			},
			{
				Name: "revoke", Usage: "make a token worthless", ArgsUsage: "ID",
				Description: "Hosts that have joined by it stay.\nExample:\n   matriarch token revoke a1b2c3d4",
				Action:      p.tokenRevoke,
			},
		},
	}
}

// tokenView is a token as list shows it.
type tokenView struct {
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses_left"`
	Made    time.Time `json:"made"`
	State   string    `json:"state"` // good, expired, used up
}

func (p *program) tokenList(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	st, err := cl.Status(c.Context)
	if err != nil {
		return err
	}
	out := []tokenView{}
	for _, id := range slices.Sorted(maps.Keys(st.State.Tokens)) {
		out = append(out, viewToken(st.State.Tokens[id], p.now()))
	}
	return emit(c, out, func(w io.Writer) {
		rows := make([][]string, 0, len(out))
		for _, t := range out {
			rows = append(rows, []string{t.ID, t.State, strconv.Itoa(t.Uses), t.Expires.Format(time.RFC3339), t.Made.Format(time.RFC3339)})
		}
		grid(w, "", []string{"ID", "State", "Uses left", "Expires", "Made"}, rows, -1, "Uses left")
	})
}

func viewToken(t fsm.Token, now time.Time) tokenView {
	v := tokenView{ID: t.ID, Expires: t.Expires, Uses: t.Uses, Made: t.Made, State: "good"}
	switch {
	case t.Uses <= 0:
		v.State = "used up"
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		v.State = "expired"
	}
	return v
}

// tokenMade is a new token; Token is the secret and shown this once.
type tokenMade struct {
	ID      string    `json:"id"`
	Token   string    `json:"token"`
	Join    string    `json:"join"` // the whole line
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"`
}

func (p *program) tokenCreate(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	ttl, uses := c.Duration("ttl"), c.Int("uses")
	if ttl < time.Minute || ttl > 365*24*time.Hour || uses < 1 || uses > 10000 {
		return usagef(c, "ttl %s and uses %d: from 1m to a year, from 1 to 10000", ttl, uses)
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	fingerprint, err := identity.Dir(cfg.StateDir).CAFingerprint()
	if err != nil {
		return err
	}
	cl, err := p.open(cfg)
	if err != nil {
		return err
	}
	defer cl.Close()
	now := p.now().UTC().Truncate(time.Second)
	t := transport.NewToken(cl.Self().ClusterID, fingerprint, now.Add(ttl), cfg.Advertise)
	text, err := t.Encode()
	if err != nil {
		return err
	}
	put := fsm.TokenPut{Token: fsm.Token{ID: t.ID, Hash: transport.HashSecret(t.Secret), Expires: now.Add(ttl), Uses: uses, Made: now}}
	if err := submit(c, cl, admin.Request{TokenPut: &put}); err != nil {
		return err
	}
	made := tokenMade{ID: t.ID, Token: text, Join: fmt.Sprintf("matriarch join %s --token %s", cfg.Advertise, text), Expires: now.Add(ttl), Uses: uses}
	return emit(c, made, func(w io.Writer) {
		fmt.Fprintf(w, "%s\n\nRun this on the new host, with --name and --group. Good until %s for %d hosts; revoke it with: matriarch token revoke %s\n", made.Join,
			made.Expires.Format(time.RFC3339), uses, made.ID)
	})
}

func (p *program) tokenRevoke(c *cli.Context) error {
	args, err := arguments(c, "ID")
	if err != nil {
		return err
	}
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := submit(c, cl, admin.Request{TokenDrop: &fsm.TokenDrop{ID: args[0]}}); err != nil {
		return err
	}
	return done(c, "token %s is revoked", args[0])
}

// submit turns a refusal into an error.
func submit(c *cli.Context, cl cluster, r admin.Request) error {
	res, err := cl.Submit(c.Context, r)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", c.Command.Name, err)
	case !res.OK:
		return fmt.Errorf("%s refused: %s", c.Command.Name, res.Reason)
	}
	return nil
}

// done says what was done.
func done(c *cli.Context, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return emit(c, map[string]string{"done": text}, func(w io.Writer) { fmt.Fprintln(w, text) })
}
