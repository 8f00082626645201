package main

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lvsd/lvsd/balancer"
	"github.com/lvsd/lvsd/conf"
)

// source is where a configuration comes from: a file or nothing, and the command line on top of it.
type source struct {
	path      string
	expandEnv bool
	socket    string
	tune      []string
}

func (s *source) fileFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.path, "config", "c", "", "configuration file")
	cmd.Flags().BoolVar(&s.expandEnv, "expand-env", false, "replace ${NAME} in the file by environment variables")
}

func (s *source) tuneFlag(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&s.tune, "tune", nil, "set a tunable, as NAME=VALUE; goes before the file; may be repeated (names: "+
		strings.Join(balancer.TunableNames(), ", ")+")")
}

// load reads the configuration.
func (s *source) load() (*conf.Config, error) {
	c := conf.Default()
	if s.path != "" {
		var opts conf.Options
		if s.expandEnv {
			opts.ExpandEnv = os.LookupEnv
		}
		var err error
		if c, err = conf.Load(s.path, opts); err != nil {
			return nil, err
		}
	}
	c.Director.Socket = cmp.Or(s.socket, c.Director.Socket)
	for _, t := range s.tune {
		name, text, ok := strings.Cut(t, "=")
		if !ok {
			return nil, &usageError{fmt.Errorf("--tune %s: write NAME=VALUE", t)}
		}
		value, err := strconv.Atoi(text)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--tune %s: the value must be a whole number", t)}
		}
		if err := c.Spec.Tunables.Set(name, value); err != nil {
			return nil, &usageError{fmt.Errorf("--tune %s: %w", t, err)}
		}
	}
	return c, nil
}
