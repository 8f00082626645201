package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lvsd/lvsd/conf"
)

func newCheck() *cobra.Command {
	var src source
	var example bool
	cmd := &cobra.Command{
		Use:   "check -c FILE",
		Short: "Find the mistakes in a configuration file",
		Long: "Reads a configuration file as `lvsd run` would and lists every mistake in it, with its line, the key and what\n" +
			"would be right. Exits with 1 if there are any.",
		Example: "  lvsd check -c /etc/lvsd/lvsd.toml\n" +
			"  lvsd check -c lvsd.toml -o json\n" +
			"  lvsd check --example > lvsd.toml    a file to begin with, every key explained",
		Args: cobra.NoArgs,
	}
	src.fileFlags(cmd)
	format := outputFlag(cmd)
	cmd.Flags().BoolVar(&example, "example", false, "print a commented example file instead")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case example:
			_, err := fmt.Fprint(cmd.OutOrStdout(), conf.Example())
			return err
		case src.path == "":
			return &usageError{errors.New("name the file to check with -c FILE")}
		}
		c, err := src.load()
		var mistakes conf.Errors
		if err != nil && !errors.As(err, &mistakes) {
			return err
		}
		if *format == "json" {
			return reportJSON(cmd, mistakes)
		}
		if err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), err)
			return errReported
		}
		servers := 0
		for _, svc := range c.Spec.Services {
			servers += len(svc.Servers)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is right: %s, %s\n", src.path, count(len(c.Spec.Services), "service"), count(servers, "server"))
		return nil
	}
	return cmd
}

func reportJSON(cmd *cobra.Command, mistakes conf.Errors) error {
	type mistake struct {
		File    string `json:"file"`
		Line    int    `json:"line"`
		Key     string `json:"key,omitempty"`
		Problem string `json:"problem"`
	}
	report := struct {
		OK       bool      `json:"ok"`
		Mistakes []mistake `json:"mistakes"`
	}{OK: len(mistakes) == 0, Mistakes: []mistake{}}
	for _, m := range mistakes {
		report.Mistakes = append(report.Mistakes, mistake{m.File, m.Line, m.Key, m.Problem})
	}
	if err := writeJSON(cmd.OutOrStdout(), report); err != nil {
		return err
	}
	if !report.OK {
		return errReported
	}
	return nil
}
