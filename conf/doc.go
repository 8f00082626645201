// Package conf reads the configuration file: TOML as written becomes plain values that have been checked.
//
// The smallest useful file is one service and its servers:
//
//	[[service]]
//	address = "192.0.2.10:80"
//	[[service.server]]
//	address = "10.0.0.11:8080"
//	[[service.server]]
//	address = "10.0.0.12:8080"
//
// [Example] is a file that explains every key. Only addresses are required; [Default] is what an empty file means.
//
// # From bytes to a Config
//
//  1. The file is read whole: a regular file of at most [MaxSize] bytes, in UTF-8, with or without a byte order mark,
//     its lines ended by LF or CRLF.
//  2. Variables are replaced, if the caller wants that (below).
//  3. places.go notes where each key stands. BurntSushi/toml then decodes the text into maps, slices and scalars. What is
//     not TOML ends here, because the rest of a file that cannot be read cannot be judged.
//  4. decode.go walks through the values, table by table. A value of the wrong type and a key that is not known are
//     reported and the walk goes on.
//  5. [balancer.Spec.Validate] judges services, servers, timeouts and tunables as a whole. Its findings are given the
//     lines of the file.
//
// # Errors
//
// Every error that [Load] and [Parse] return is of type [Errors]: all that is wrong with the file, in the order of
// its lines. Services and servers are counted from 1 in the keys of messages:
//
//	lvsd.toml:12: service[1].scheduler: "wrrr" is not one of lc, rr, wlc, wrr; did you mean "wrr"?
//
// # Variables
//
// With [Options.ExpandEnv], ${NAME} is replaced by the value of the variable NAME before the text is parsed, anywhere
// but on lines that are comments. A name is made of letters, digits and underscores and does not start with a digit.
// An unset variable is an error, an empty one is not. $${ stands for a literal ${ and a value is not searched for
// further variables. The quotes of a string belong into the file:
//
//	address = "${VIP}:80"
//	weight = ${WEIGHT}
//
// A value may hold several lines; messages still name the line in the file. Without the option ${ means nothing.
package conf
