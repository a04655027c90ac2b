package main

import "github.com/urfave/cli/v2"

// leadVerbs are the verbs that make and run a node.
func leadVerbs() []*cli.Command {
	return []*cli.Command{bootstrapVerb(), joinVerb(), runVerb(), stopVerb(), sentinelVerb(), recoverVerb()}
}
