package conf

import (
	"reflect"
	"strings"
	"testing"
)

func TestExpandEnv(t *testing.T) {
	env := map[string]string{
		"VIP": "192.0.2.10", "WEIGHT": "7", "EMPTY": "", "_x1": "lb0", "NESTED": "${VIP}", "HUGE": strings.Repeat(" ", MaxSize/2),
		"SERVERS": "[[service.server]]\naddress = \"10.0.0.11\"\n[[service.server]]\naddress = \"10.0.0.12\"",
	}
	lookup := func(name string) (string, bool) {
		value, set := env[name]
		return value, set
	}
	for _, tc := range []struct {
		name, text string
		same       string // a text without variables that means the same
		errs       string
	}{
		{name: "in strings and numbers",
			text: "[[service]]\naddress = \"${VIP}:80\"\n[[service.server]]\naddress = \"10.0.0.1\"\nweight = ${WEIGHT}\n",
			same: "[[service]]\naddress = \"192.0.2.10:80\"\n[[service.server]]\naddress = \"10.0.0.1\"\nweight = 7\n"},
		{name: "twice in a line, empty, underscore",
			text: "[director]\ntun = \"${_x1}${EMPTY}\" # ${EMPTY}\n", same: "[director]\ntun = \"lb0\"\n"},
		{name: "in keys", text: "[director]\n${_x1} = 1\n", errs: "f:2: director.lb0: unknown key; [director] knows " + strings.Join(keysOf("director"), ", ")},
		{name: "several lines",
			text: "[[service]]\naddress = \"${VIP}:80\"\n${SERVERS}\n",
			same: "[[service]]\naddress = \"192.0.2.10:80\"\nserver = [{ address = \"10.0.0.11\" }, { address = \"10.0.0.12\" }]\n"},
		{name: "lines behind several lines",
			text: "[[service]]\naddress = \"${VIP}:80\"\n${SERVERS}\nweight = -1\nweihgt = 1",
			errs: "f:4: service[1].server[2].weight: must be 0 to 2147483647, not -1\nf:5: service[1].server[2].weihgt: unknown key; did you mean \"weight\"?"},
		{name: "lines inside several lines",
			text: "[[service]]\naddress = \"${VIP}:80\"\n\n${SERVERS}\n${SERVERS}",
			errs: "f:5: service[1].server[3].address: 10.0.0.11:80 is already server[1] (line 4) of this service\n" +
				"f:5: service[1].server[4].address: 10.0.0.12:80 is already server[2] (line 4) of this service"},
		{name: "syntax behind several lines",
			text: "[[service]]\naddress = \"${VIP}:80\"\n${SERVERS}\nweight\n",
			errs: "f:4: expected = and a value after the key"},
		{name: "literal", text: "[director]\ntun = \"$${a}\"\n", same: "[director]\ntun = \"\\u0024{a}\"\n"},
		{name: "literal before a variable", text: "[director]\ntun = \"$${${_x1}\"\n", same: "[director]\ntun = \"\\u0024{lb0\"\n"},
		{name: "dollar before a literal", text: "[director]\ntun = \"$$${a}\"\n", same: "[director]\ntun = \"$\\u0024{a}\"\n"},
		{name: "plain dollars", text: "[director]\ntun = \"$VIP$1{}\"\n", same: "[director]\ntun = \"$VIP$1{}\"\n"},
		{name: "not searched again", text: "[director]\ntun = '${NESTED}'\n", same: "[director]\ntun = '${VIP}'\n"},
		{name: "comments", text: "# ${UNSET} ${\n\t #${1}\n", same: ""},
		{name: "unset", text: "[director]\ntun = \"${A}${B}\"\n\nqueues = ${C_3}\nio = 1\n",
			errs: "f:2: the environment variable A is not set\nf:2: the environment variable B is not set\nf:4: the environment variable C_3 is not set"},
		{name: "not a name", text: "tun = ${}\nio = ${A B}\nroutes = ${1A}\nsocket = \"${VIP:-x}\"\nqueues = ${VIP\n",
			errs: `f:1: "${}" is not a variable; write ${NAME}, or $${ for a literal ${` + "\n" +
				`f:2: "${A B}" is not a variable; write ${NAME}, or $${ for a literal ${` + "\n" +
				`f:3: "${1A}" is not a variable; write ${NAME}, or $${ for a literal ${` + "\n" +
				`f:4: "${VIP:-x}" is not a variable; write ${NAME}, or $${ for a literal ${` + "\n" +
				`f:5: "${VIP" is not a variable; write ${NAME}, or $${ for a literal ${`},
		{name: "too large", text: "[director]\n\nqueues = ${HUGE}${HUGE}${HUGE}1\n", errs: "f:3: with its variables replaced the file is larger than 16 MiB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse("f", []byte(tc.text), Options{ExpandEnv: lookup})
			if tc.errs != "" {
				if err == nil || err.Error() != tc.errs {
					t.Errorf("got error\n%v\nwant\n%s", err, tc.errs)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := mustParse(t, tc.same); !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestNoExpansionUnasked(t *testing.T) {
	if got := mustParse(t, "[director]\ntun = \"${X}$${\"\n").Director.Tun; got != "${X}$${" {
		t.Errorf("got %q", got)
	}
}
