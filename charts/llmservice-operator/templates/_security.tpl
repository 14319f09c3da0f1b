{{/*
Fixed, or Namespace where the platform assigns the IDs: OpenShift's restricted-v2 refuses others.
*/}}
{{- define "llmservice-operator.userIds" -}}
{{- $isOpenShift := .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- eq .Values.userIds "Auto" | ternary (ternary "Namespace" "Fixed" $isOpenShift) .Values.userIds -}}
{{- end -}}

{{- define "llmservice-operator.podSecurityContext" -}}
{{- $isFixed := eq (include "llmservice-operator.userIds" .) "Fixed" -}}
{{- $context := ternary (dict "runAsUser" 10001 "runAsGroup" 10001) (dict) $isFixed -}}
{{- /* Not merge, which takes the ID 0 for a missing one. */}}
{{- range $field, $value := .Values.podSecurityContext }}
{{- $_ := set $context $field $value }}
{{- end }}
{{- toYaml $context -}}
{{- end -}}

{{- define "llmservice-operator.containerSecurityContext" -}}
{{- .Values.containerSecurityContext | toYaml -}}
{{- end -}}
